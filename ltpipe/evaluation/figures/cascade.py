"""Figures of DLSA's cascades."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator

from ltpipe.artifacts.reading import checked_file
from ltpipe.evaluation.figures.base import Drawn, Material, file_of
from ltpipe.evaluation.figures.data import in_the_plane, some_samples, unit_features
from ltpipe.evaluation.style import COLOURS
from ltpipe.stage2.core.results import read_predictions
from ltpipe.utils.errors import InputError


def _cascade(material: Material, settings: Mapping[str, Any], file: str) -> pd.DataFrame:
    """Return a table that every seed of the figure's methods left, with `method` and `seed`."""
    parts = []
    for method in settings["methods"]:
        for seed, folder in enumerate(material.folders(settings["dataset"], method)):
            part = _read_table(checked_file(folder, file), method)
            parts.append(part.assign(method=method, seed=seed))
    return pd.concat(parts, ignore_index=True)


def _read_table(path: Path, method: str) -> pd.DataFrame:
    try:
        return pd.read_csv(path)
    except (OSError, ValueError):
        raise InputError(f"{path}: missing or damaged; run {method} again") from None


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


def cascade_tsne(material: Material, settings: Mapping[str, Any]) -> Drawn:
    """Test features in the plane, a panel a block, head and tail classes in two colours."""
    dataset, method = settings["dataset"], settings["method"]
    units, _ = unit_features(material, dataset, settings["backbone"])
    routes = _read_table(checked_file(material.folders(dataset, method)[0], "routes.csv"), method)
    if len(routes) != len(units):
        raise InputError(
            f"figures: {method} routes {len(routes)} samples, {settings['backbone']} has "
            f"{len(units)} features"
        )
    kept = some_samples(len(units))
    xy = in_the_plane(units[kept])
    data = routes.iloc[kept].assign(x=xy[:, 0], y=xy[:, 1])
    blocks = sorted(routes["block"].unique(), key=lambda block: (block == 0, block))
    name = f"cascade-tsne-{method}-{dataset}".lower()
    with file_of(material, name, data, width=3.0 * len(blocks), height=3.6) as figure:
        all_axes = np.atleast_1d(figure.subplots(1, len(blocks), sharex=True, sharey=True))
        for axes, block in zip(all_axes, blocks, strict=True):
            axes.scatter(data["x"], data["y"], s=3, color="#e3e3e3", linewidths=0)
            inside = data[data["block"] == block]
            for tail, label in ((False, "head classes"), (True, "tail classes")):
                part = inside[inside["tail"] == tail]
                colour = COLOURS[1] if tail else COLOURS[0]
                axes.scatter(part["x"], part["y"], s=9, color=colour, linewidths=0, label=label)
            share = inside["tail"].mean() if len(inside) else float("nan")
            title = "rest" if block == 0 else f"block {block}"
            axes.set_title(f"{title}: {len(inside)}, {share:.0%} tail", fontsize=11)
            axes.set_xticks([])
            axes.set_yticks([])
        handles, texts = all_axes[0].get_legend_handles_labels()
        figure.legend(handles, texts, loc="outside lower center", ncols=2, markerscale=2)
    return Drawn(
        name,
        f"What each block takes out, {material.dataset(dataset)['label']}",
        f"{len(kept)} test images by t-SNE of unit features, first seed of "
        f"{material.label(method)}; grey: all of them.",
    )


def probing(material: Material, settings: Mapping[str, Any]) -> Drawn:
    """The expected accuracy if a sample is sent to its true group with a given probability.

    Within a group, the highest score among the group's classes decides; a sample that is sent to
    the other group is lost. The dashed lines are the classifiers as they are.
    """
    dataset = settings["dataset"]
    certainty = np.linspace(0.5, 1, 11)
    rows = []
    for method in settings["methods"]:
        for seed, folder in enumerate(material.folders(dataset, method)):
            found = read_predictions(folder)
            if found.scores is None:
                raise InputError(
                    f"figures: {method} on {dataset} has too many scores to be kept; probing "
                    "needs them"
                )
            tail = np.asarray(found.class_counts) <= settings["tail_count"]
            other = tail[found.labels][:, None] != tail[None]
            inside = np.where(other, -np.inf, found.scores[0]).argmax(1) == found.labels
            plain = (found.predicted[0] == found.labels).mean()
            rows += [(method, seed, a, a * inside.mean(), plain) for a in certainty]
    data = pd.DataFrame(rows, columns=["method", "seed", "separation", "accuracy", "plain"])
    name = f"probing-{dataset}"
    with file_of(material, name, data) as figure:
        axes = figure.subplots()
        for place, method in enumerate(settings["methods"]):
            mean = (
                data[data["method"] == method].groupby("separation")[["accuracy", "plain"]].mean()
            )
            colour = COLOURS[place % len(COLOURS)]
            label = material.label(method)
            axes.plot(100 * mean.index, 100 * mean["accuracy"], "o-", color=colour, label=label)
            axes.axhline(100 * mean["plain"].iloc[0], color=colour, linestyle="--", linewidth=1)
        axes.set_xlabel("samples sent to their true group, head or tail, %")
        axes.set_ylabel("test accuracy, %")
        figure.legend(loc="outside lower center")
    return Drawn(
        name,
        f"If head and tail were told apart, {material.dataset(dataset)['label']}",
        f"Expected accuracy, mean over seeds; classes of at most {settings['tail_count']} training "
        "images are tail. Dashed: the same classifiers without being told.",
    )
