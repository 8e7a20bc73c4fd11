"""Where backbones look in test images of a data set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch

from ltpipe.artifacts.reading import open_artifact
from ltpipe.data.augment import normalise
from ltpipe.data.head_tail import group_classes
from ltpipe.data.loading import open_split
from ltpipe.data.subset import Subset, read_subset
from ltpipe.evaluation.figures.base import Drawn, Material, file_of
from ltpipe.evaluation.heatmaps import as_picture, draw_panel, heat_panels, open_backbone
from ltpipe.utils.errors import InputError
from ltpipe.utils.paths import named_root
from ltpipe.utils.seeding import generator


def activation_maps(material: Material, settings: Mapping[str, Any]) -> Drawn:
    """Heat maps of test images, a row a backbone and image, for each image's true class.

    HRJBA, Figs 3 and 9: images of tail classes, one of each of the largest of them. Backbones are
    those of the first seed. Data: the share of each map's heat on the hottest tenth of the image.
    """
    dataset, method = settings["dataset"], settings["method"]
    folders = [material.backbone_folder(dataset, name) for name in settings["backbones"]]
    first = open_artifact(folders[0])
    subset = read_subset(first.inputs("data")[""].file("subset.h5"))
    chosen = _samples(subset, settings)
    split = open_split(first.spec["dataset"], subset, "test", torch.device("cpu"), named_root(None))
    images = next(split.batches.epoch(torch.from_numpy(chosen), len(chosen), None))
    inputs = normalise(images, split.pixels.mean, split.pixels.std, torch.float32)
    labels = [subset.class_names[label] for label in subset.test_labels[chosen]]
    rows: list[tuple[str, int, list[tuple[str, Any]]]] = []
    for name, folder in zip(settings["backbones"], folders, strict=True):
        explained = open_backbone(folder)
        if missing := [label for label in labels if label not in explained.names]:
            raise InputError(f"figures: the backbone {name} knows no class {missing[0]!r}")
        places = torch.tensor([explained.names.index(label) for label in labels])
        channels, untrained = settings["channels"], settings["untrained"]
        panels = heat_panels(explained, inputs, places, method, channels, untrained)
        rows += [(name, i, [(t, maps[i]) for t, maps in panels]) for i in range(len(chosen))]
    data = pd.DataFrame(
        [
            (name, labels[i], int(subset.test_index[chosen[i]]), text, _concentration(heat))
            for name, i, panels in rows
            for text, heat in panels
        ],
        columns=["backbone", "class", "sample", "map", "share_on_hottest_tenth"],
    )
    stem = f"activation-{method}-{dataset}"
    width = 2.1 * (1 + len(rows[0][2]))
    with file_of(material, stem, data, width=width, height=2.2 * len(rows)) as figure:
        for axes_row, (name, i, panels) in zip(
            figure.subplots(len(rows), 1 + len(rows[0][2]), squeeze=False), rows, strict=True
        ):
            titled = [(f"{labels[i]}, {name}", None), *panels]
            for axes, (text, heat) in zip(axes_row, titled, strict=True):
                draw_panel(axes, as_picture(images[i]), heat, text)
    return Drawn(
        stem,
        f"Where networks look, {material.dataset(dataset)['label']}",
        f"{'Grad-CAM' if method == 'grad-cam' else 'Class activation maps'} of the last block for "
        "the true class; test images of tail classes, networks of the first seed.",
    )


def _samples(subset: Subset, settings: Mapping[str, Any]) -> np.ndarray:
    """Return places among the test samples: one of each of the group's largest classes."""
    counts = subset.class_counts
    group = group_classes(counts, settings["tail_share"], settings["group"])
    largest = sorted(group, key=lambda label: -counts[label])[: settings["images"]]
    draws = generator(0, "explained")
    places = []
    for label in largest:
        inside = np.flatnonzero(subset.test_labels == label)
        if len(inside):
            places.append(int(inside[int(torch.randint(len(inside), (), generator=draws))]))
    return np.array(places)


def _concentration(heat: torch.Tensor) -> float:
    """Return the share of a map's positive heat that its hottest tenth of places has."""
    values = heat.clamp_min(0).flatten().sort(descending=True).values
    total = float(values.sum())
    return float(values[: max(1, len(values) // 10)].sum()) / total if total else float("nan")
