"""Figures of DLSA's cascades."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator

from ltpipe.errors import InputError
from ltpipe.evaluation.figures.base import Drawn, Material, file_of


def _cascade(material: Material, settings: Mapping[str, Any], file: str) -> pd.DataFrame:
    """Return a table that every seed of the figure's methods left, with `method` and `seed`."""
    parts = []
    for method in settings["methods"]:
        for seed, folder in enumerate(material.folders(settings["dataset"], method)):
            try:
                part = pd.read_csv(folder / file)
            except (OSError, ValueError):
                raise InputError(
                    f"{folder / file}: missing or damaged; run {method} again"
                ) from None
            parts.append(part.assign(method=method, seed=seed))
    return pd.concat(parts, ignore_index=True)


def cluster_sizes(material: Material, settings: Mapping[str, Any]) -> Drawn:
    """Sorted sizes of one block's clusters, the mean over seeds, a line a method."""
    block = settings["block"]
    table = _cascade(material, settings, "clusters.csv")
    table = table[table["block"] == block].sort_values("size", ascending=False)
    table["rank"] = table.groupby(["method", "seed"]).cumcount() + 1
    seeds = table["seed"].nunique()
    # A cluster that a seed leaves empty has size 0 there.
    data = table.groupby(["method", "rank"], sort=False)["size"].sum().div(seeds).reset_index()
    name = f"cluster-sizes-{settings['dataset']}-block{block}"
    with file_of(material, name, data) as figure:
        axes = figure.subplots()
        for method in settings["methods"]:
            part = data[data["method"] == method].sort_values("rank")
            axes.plot(part["rank"], part["size"], marker=".", label=material.label(method))
        axes.set_yscale("log")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("clusters, by size")
        axes.set_ylabel("training samples")
        axes.legend()
    label = material.dataset(settings["dataset"])["label"]
    return Drawn(
        name,
        f"Cluster sizes of block {block}, {label}",
        "Training samples in each cluster, from the largest to the smallest; mean over seeds.",
    )


def cluster_purity(material: Material, settings: Mapping[str, Any]) -> Drawn:
    """How many of one block's clusters are how pure, a step line a method."""
    block = settings["block"]
    table = _cascade(material, settings, "clusters.csv")
    table = table[table["block"] == block]
    edges = np.linspace(0, 1, 11)
    rows = []
    for (method, _), part in table.groupby(["method", "seed"], sort=False):
        counts, _ = np.histogram(part["purity"], edges)
        rows += [(method, low, n) for low, n in zip(edges[:-1], counts, strict=True)]
    data = pd.DataFrame(rows, columns=["method", "purity_from", "clusters"])
    data = data.groupby(["method", "purity_from"], sort=False)["clusters"].mean().reset_index()
    name = f"cluster-purity-{settings['dataset']}-block{block}"
    with file_of(material, name, data) as figure:
        axes = figure.subplots()
        for method in settings["methods"]:
            part = data[data["method"] == method]
            axes.stairs(part["clusters"], edges, label=material.label(method), linewidth=2)
        axes.set_xlabel("share of a cluster's largest class")
        axes.set_ylabel("clusters")
        axes.legend(loc="upper left")
    label = material.dataset(settings["dataset"])["label"]
    return Drawn(
        name,
        f"Purity of the clusters of block {block}, {label}",
        "Clusters by the share of their largest class among training samples; mean over seeds.",
    )


def separation(material: Material, settings: Mapping[str, Any]) -> Drawn:
    """Separation accuracy of each block, bars by method, and the share of tail classes in all."""
    table = _cascade(material, settings, "blocks.csv")
    data = (
        table.groupby(["method", "block"], sort=False)["separation"]
        .agg(["mean", "std"])
        .reset_index()
    )
    chance = float(table["tail_share"].mean())
    data["tail_share"] = chance
    blocks = sorted(data["block"].unique())
    width = 0.8 / len(settings["methods"])
    name = f"separation-{settings['dataset']}"
    with file_of(material, name, data, height=5.0) as figure:
        axes = figure.subplots()
        for place, method in enumerate(settings["methods"]):
            part = data[data["method"] == method]
            offset = (place - (len(settings["methods"]) - 1) / 2) * width
            axes.bar(
                part["block"] + offset,
                100 * part["mean"],
                width * 0.9,
                yerr=100 * part["std"].fillna(0),
                label=material.label(method),
                error_kw={"linewidth": 1},
            )
        axes.axhline(100 * chance, color="black", linestyle="--", linewidth=1, label="all samples")
        axes.set_xticks(blocks, [f"block {block}" for block in blocks])
        axes.set_ylabel("of tail classes, %")
        axes.set_ylim(0, 100)
        axes.grid(axis="x", visible=False)
        figure.legend(loc="outside lower center")
    label = material.dataset(settings["dataset"])["label"]
    return Drawn(
        name,
        f"Separation accuracy, {label}",
        "Share of tail classes (at most 50 training images) among the test samples that a block "
        "takes out; mean and standard deviation over seeds. Dashed: their share in the test set.",
    )
