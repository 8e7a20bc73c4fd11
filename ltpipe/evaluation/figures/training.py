"""Figures of stage one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from ltpipe.evaluation.figures.base import Drawn, Material, file_of, plain_numbers
from ltpipe.evaluation.records import read_history
from ltpipe.utils.errors import InputError


def training_curves(material: Material, settings: Mapping[str, Any]) -> Drawn:
    """Loss and training accuracy of each backbone over epochs, mean over seeds."""
    dataset = settings["dataset"]
    trained = [row["backbone"] for row in material.spec["stage1"]]
    wanted = settings.get("backbones", trained)
    tables = []
    for row in material.spec["stage1"]:
        if row["dataset"] == dataset and row["backbone"] in wanted:
            history = read_history(material.base / row["folder"])
            tables.append(history.assign(backbone=row["backbone"], seed=row["seed"]))
    if not tables:
        raise InputError(f"figures: none of {', '.join(wanted)} was trained on {dataset}")
    data = pd.concat(tables, ignore_index=True).drop(columns="seconds")
    name = f"training-{dataset}"
    with file_of(material, name, data, height=3.4) as figure:
        left, right = figure.subplots(1, 2)
        for backbone, part in data.groupby("backbone", sort=False):
            mean = part.groupby("epoch")[["loss", "accuracy"]].mean()
            left.plot(mean.index + 1, mean["loss"], label=backbone)
            right.plot(mean.index + 1, 100 * mean["accuracy"], label=backbone)
        left.set_ylabel("training loss")
        right.set_ylabel("training accuracy, %")
        left.set_yscale("log")
        plain_numbers(left.yaxis)
        for axes in (left, right):
            axes.set_xlabel("epoch")
        right.legend(loc="lower right")
    return Drawn(
        name,
        f"Stage one, {material.dataset(dataset)['label']}",
        ("Means over seeds. " if data["seed"].nunique() > 1 else "")
        + "Accuracy is that of augmented (and, where set, mixed) training batches.",
    )
