"""All methods against each other: mean ranks, a critical difference, overall against the tail."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import friedmanchisquare, rankdata, studentized_range

from ltpipe.artifacts.manifest import read_manifest
from ltpipe.evaluation.figures.base import Drawn, Material, file_of
from ltpipe.evaluation.tables import LOW_IS_BETTER, METRIC_TITLES
from ltpipe.utils.errors import InputError


def critical_difference(methods: int, blocks: int, level: float = 0.05) -> float:
    """Return by how much mean ranks must differ: Nemenyi's test, Demsar, JMLR 2006, section 3.2.2.

    ``q sqrt(k (k + 1) / (6 N))``, q the studentised range of k means over sqrt 2.
    """
    q = float(studentized_range.ppf(1 - level, methods, np.inf)) / np.sqrt(2)
    return float(q * np.sqrt(methods * (methods + 1) / (6 * blocks)))


def mean_ranks(values: pd.DataFrame, *, low_is_better: bool = False) -> pd.Series:
    """Return each method's mean rank, best first; blocks are rows, ties share their ranks."""
    signed = values.to_numpy() if low_is_better else -values.to_numpy()
    return pd.Series(rankdata(signed, axis=1).mean(0), index=values.columns).sort_values()


def ranking(material: Material, settings: Mapping[str, Any]) -> Drawn:
    """Mean ranks over data sets and draws, with the critical difference, and the tail beside all.

    A block is a data set and a draw, its value the mean over seeds; methods that lack a block are
    left out. The data behind has the seconds that a head took, too.
    """
    metric = settings["metric"]
    records = material.records
    own = records.groupby(["dataset", "method"], sort=False)["protocol"].transform("first")
    chosen = records[
        (records["protocol"] == own)
        & records["dataset"].isin(settings["datasets"])
        & records["method"].isin(settings["methods"])
        & (records["parameters"] == "{}")
    ]

    def blocks_of(name: str) -> pd.DataFrame:
        part = chosen[chosen["metric"] == name]
        return part.pivot_table("value", ["dataset", "draw"], "method", sort=False)

    values = blocks_of(metric).dropna(axis=1)
    blocks, methods = values.shape
    if methods < 3 or blocks < 2:
        raise InputError("figures: a ranking needs three methods on two data sets or draws")
    ranks = mean_ranks(values, low_is_better=metric in LOW_IS_BETTER)
    needed = critical_difference(methods, blocks)
    p = friedmanchisquare(*values.to_numpy().T).pvalue
    data = pd.DataFrame(
        {
            "label": [material.label(method) for method in ranks.index],
            "rank": ranks.to_numpy(),
            **{
                name: blocks_of(name)[ranks.index].mean().to_numpy()
                for name in ("accuracy", "many", "medium", "few")
            },
            "seconds": [_seconds(material, settings["datasets"], name) for name in ranks.index],
        },
        index=ranks.index,
    ).reset_index(names="method")
    title = METRIC_TITLES[metric]
    height = max(3.8, 0.2 * methods + 1)
    with file_of(material, f"ranking-{settings['name']}", data, 10.0, height) as figure:
        left, right = figure.subplots(1, 2)
        places = np.arange(methods)
        left.hlines(places, data["rank"], data["rank"] + needed, color="#bdbdbd", linewidth=3)
        left.plot(data["rank"], places, "o", color="#1f77b4", markersize=4)
        left.axvline(float(data["rank"].iloc[0]) + needed, color="#d62728", linewidth=0.8)
        left.set_yticks(places, data["label"], fontsize=7)
        left.invert_yaxis()
        left.set_xlabel(f"mean rank by {title} over {blocks} data sets and draws")
        right.plot(100 * data["accuracy"], 100 * data["few"], "o", markersize=4)
        for label, x, y in zip(data["label"], data["accuracy"], data["few"], strict=True):
            right.annotate(label, (100 * x, 100 * y), fontsize=5, alpha=0.8)
        right.set_xlabel("accuracy, %")
        right.set_ylabel("accuracy of the rarest third of classes, %")
    return Drawn(
        f"ranking-{settings['name']}",
        f"Mean ranks of {methods} methods by {title}",
        f"Left of the red line: methods that Nemenyi's test at 5 % does not tell from the best "
        f"(critical difference {needed:.2f}; Friedman's test: p = {p:.1g}). Draws share one test "
        "set. Right: accuracy against that of rare classes.",
    )


def _seconds(material: Material, datasets: list[str], method: str) -> float:
    folders = [
        row["folder"]
        for row in material.spec["results"]
        if row["method"] == method and row["dataset"] in datasets
    ]
    times = [read_manifest(material.base / folder)["wall_s"] for folder in folders]
    return float(np.median(times))
