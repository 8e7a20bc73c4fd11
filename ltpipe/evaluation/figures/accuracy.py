"""Figures of results: accuracy by class and over a sweep, confusion."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from sklearn.metrics import confusion_matrix

from ltpipe.evaluation.figures.base import (
    Drawn,
    Material,
    file_of,
    name_classes,
    plain_numbers,
    short_name,
)
from ltpipe.evaluation.published import of_dataset, published_table
from ltpipe.evaluation.records import read_class_counts
from ltpipe.evaluation.tables import METRIC_TITLES, published_curve
from ltpipe.stage2.core.results import read_predictions
from ltpipe.utils.errors import InputError


def _point_matches(parameters: str, at: Mapping[str, float]) -> bool:
    values = json.loads(parameters)
    return all(key not in values or values[key] == value for key, value in at.items())


def per_class_accuracy(material: Material, settings: Mapping[str, Any]) -> Drawn:
    """Each class's accuracy for several methods, over the curve of training counts.

    FFN, Figs 2 and 6.
    """
    dataset, methods = settings["dataset"], settings["methods"]
    names, counts = read_class_counts(material.base / material.dataset(dataset)["folder"])
    order = np.argsort(-np.array(counts), kind="stable")
    data = pd.DataFrame(
        {"class": np.array(names)[order], "training_images": np.array(counts)[order]}
    )
    records = material.records
    for method in methods:
        chosen = records[
            (records["dataset"] == dataset)
            & (records["method"] == method)
            & (records["metric"] == "class_accuracy")
            & records["parameters"].map(lambda text: _point_matches(text, settings["at"]))
        ]
        if chosen.empty:
            raise InputError(f"figures: {method} has no accuracy of classes at {settings['at']}")
        # A method's own protocol comes first; others, such as the best test epoch, follow.
        chosen = chosen[chosen["protocol"] == chosen["protocol"].iloc[0]]
        means = chosen.groupby("class")["value"].mean()
        data[material.label(method)] = means.reindex(order).to_numpy()
    name = f"per-class-accuracy-{dataset}"
    with file_of(material, name, data) as figure:
        axes = figure.subplots()
        behind = axes.twinx()
        behind.bar(range(len(order)), data["training_images"], color="#d9d9d9", width=0.9)
        behind.set_yscale("log")
        plain_numbers(behind.yaxis)
        behind.set_ylabel("training images", color="#767676")
        behind.tick_params(colors="#767676")
        behind.grid(visible=False)
        behind.spines["right"].set_visible(True)
        behind.spines["right"].set_color("#bdbdbd")
        axes.set_zorder(behind.get_zorder() + 1)
        axes.patch.set_visible(False)
        marker = "o" if len(order) <= 20 else None
        for method in methods:
            label = material.label(method)
            axes.plot(
                range(len(order)), 100 * data[label], marker=marker, markersize=5, label=label
            )
        axes.set_ylim(0, 103)
        axes.set_ylabel("test accuracy, %")
        name_classes(axes, data["class"].tolist())
        longest = max(len(material.label(method)) for method in methods)
        columns = max(1, min(len(methods), 72 // (longest + 6)))
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=columns)
    point = ", ".join(f"{key} = {value:g}" for key, value in settings["at"].items())
    return Drawn(
        name,
        f"Accuracy of each class, {material.dataset(dataset)['label']}",
        "Mean over seeds"
        + (f", {point}" if point else "")
        + ". Grey bars: training images (right axis, logarithmic).",
    )


def sweep_curve(material: Material, settings: Mapping[str, Any]) -> Drawn:
    """A metric over a swept parameter, mean and standard deviation over seeds.

    FFN, Table 3 and Fig. 4.
    """
    dataset, method = settings["dataset"], settings["method"]
    parameter, metric = settings["parameter"], settings["metric"]
    records = material.records
    chosen = records[
        (records["dataset"] == dataset)
        & (records["method"] == method)
        & (records["metric"] == metric)
        & records["protocol"].str.startswith("last")
    ].copy()
    chosen[parameter] = chosen["parameters"].map(lambda text: json.loads(text).get(parameter))
    if chosen[parameter].isna().any() or chosen.empty:
        raise InputError(f"figures: {method} has no sweep over {parameter} on {dataset}")
    grouped = chosen.groupby(parameter)["value"]
    data = pd.DataFrame(
        {
            parameter: list(grouped.groups),
            "mean": grouped.mean().to_numpy(),
            "sd": grouped.std(ddof=1).to_numpy(),
            "seeds": grouped.size().to_numpy(),
        }
    )
    if settings["expected"] is not None:
        data["paper_percent"] = published_curve(
            settings["expected"],
            material.dataset(dataset),
            settings["paper_method"] or "",
            metric,
            [{parameter: value} for value in data[parameter]],
            material.expected_dir,
        )
    name = f"sweep-{method}-{dataset}".lower()
    with file_of(material, name, data) as figure:
        axes = figure.subplots()
        mean, sd = 100 * data["mean"], 100 * data["sd"].fillna(0)
        axes.plot(data[parameter], mean, marker="o", label=material.label(method))
        axes.fill_between(data[parameter], mean - sd, mean + sd, alpha=0.18, linewidth=0)
        if "paper_percent" in data and data["paper_percent"].notna().any():
            axes.plot(
                data[parameter],
                data["paper_percent"],
                "--",
                marker="s",
                markersize=4,
                label="paper",
            )
            axes.legend()
        axes.set_xlabel(
            f"{parameter} (weight of the KPS features)" if parameter == "w1" else parameter
        )
        axes.set_ylabel(f"test {METRIC_TITLES[metric]}, %")
    seeds = int(data["seeds"].max())
    band = f"Mean over {seeds} seeds, last epoch; the band is one standard deviation."
    return Drawn(
        name,
        f"{material.label(method)} over {parameter}, {material.dataset(dataset)['label']}",
        band if seeds > 1 else "One seed, last epoch.",
    )


def confusion(material: Material, settings: Mapping[str, Any]) -> Drawn:
    """Row-normalised confusion matrix, classes by training count, summed over seeds."""
    dataset, method = settings["dataset"], settings["method"]
    total: np.ndarray | None = None
    for folder in material.folders(dataset, method):
        found = read_predictions(folder)
        place = next(
            place
            for place, point in enumerate(found.points)
            if all(point.get(key) == value for key, value in settings["at"].items())
        )
        classes = len(found.class_names)
        matrix = confusion_matrix(found.labels, found.predicted[place], labels=range(classes))
        total = matrix if total is None else total + matrix
        order = np.argsort(-np.array(found.class_counts), kind="stable")
        names = np.array(found.class_names)[order]
    assert total is not None
    sorted_matrix = total[np.ix_(order, order)]
    if settings["bins"] is not None:
        sorted_matrix, names = _binned(sorted_matrix, settings["bins"])
    share = sorted_matrix / np.maximum(sorted_matrix.sum(1, keepdims=True), 1)
    if not settings["diagonal"]:
        np.fill_diagonal(share, 0)
    data = pd.DataFrame(share, columns=names)
    data.insert(0, "true_class", names)
    name = f"confusion-{method}-{dataset}".lower()
    shown = [short_name(name) for name in names]
    long = max(map(len, shown)) > 3
    # Longer names and more classes take more room.
    extra = 0.07 * max(map(len, shown)) if long and len(names) <= 20 else 0.0
    side = max(4.8, 0.36 * min(len(names), 20))
    with file_of(material, name, data, width=side + 0.8 + extra, height=side + extra) as figure:
        axes = figure.subplots()
        highest = 1.0 if settings["diagonal"] else max(float(share.max()), 0.01)
        image = axes.imshow(100 * share, cmap="Blues", vmin=0, vmax=100 * highest)
        axes.grid(visible=False)
        if len(names) <= 20:
            axes.set_xticks(range(len(names)), shown)
            if long:
                axes.tick_params("x", labelrotation=90)
            axes.set_yticks(range(len(names)), shown)
            for row, column in np.argwhere(share >= 0.005):
                axes.annotate(
                    f"{100 * share[row, column]:.0f}",
                    (column, row),
                    ha="center",
                    va="center",
                    fontsize=8,
                    color="white" if share[row, column] > 0.55 * highest else "#333333",
                )
        what = "class" if settings["bins"] is None else "classes"
        axes.set_xlabel(f"predicted {what}")
        axes.set_ylabel(f"true {what}, largest first")
        figure.colorbar(image, label="% of the true class", shrink=0.85)
    point = ", ".join(f"{key} = {value:g}" for key, value in settings["at"].items())
    return Drawn(
        name,
        f"Confusion of {material.label(method)}, {material.dataset(dataset)['label']}",
        (
            "Percent of each true class"
            if settings["bins"] is None
            else "Percent of each row's samples"
        )
        + ", all seeds together"
        + (f", {point}" if point else "")
        + ("." if settings["diagonal"] else "; the diagonal is left out."),
    )


def _binned(matrix: np.ndarray, bins: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the matrix of `bins` runs of neighbouring classes, and the ranks that each covers."""
    parts = [part for part in np.array_split(np.arange(len(matrix)), bins) if len(part)]
    starts = [part[0] for part in parts]
    summed = np.add.reduceat(np.add.reduceat(matrix, starts, 0), starts, 1)
    names = [f"{p[0] + 1}" if len(p) == 1 else f"{p[0] + 1}-{p[-1] + 1}" for p in parts]
    return summed, np.array(names)


def tail_accuracy(material: Material, settings: Mapping[str, Any]) -> Drawn:
    """The share of right answers on the samples of the rarest classes, by how many classes.

    HRJBA, Figs 6 and 7: one classifier of all classes, classes ranked by training images.
    """
    dataset = settings["dataset"]
    rows = []
    for method in settings["methods"]:
        for seed, folder in enumerate(material.folders(dataset, method)):
            found = read_predictions(folder)
            rarest = np.argsort(np.array(found.class_counts), kind="stable")
            hits = found.predicted[0] == found.labels
            for size in settings["sizes"]:
                inside = np.isin(found.labels, rarest[:size])
                rows.append((method, seed, size, hits[inside].mean()))
    data = pd.DataFrame(rows, columns=["method", "seed", "classes", "accuracy"])
    differences = _published_differences(material, settings, data)
    name = f"tail-accuracy-{dataset}"
    with file_of(material, name, data) as figure:
        axes = figure.subplots()
        for method in settings["methods"]:
            part = data[data["method"] == method].groupby("classes")["accuracy"]
            mean, sd = 100 * part.mean(), 100 * part.std(ddof=1).fillna(0)
            axes.plot(mean.index, mean, marker="o", label=material.label(method))
            axes.fill_between(mean.index, mean - sd, mean + sd, alpha=0.18, linewidth=0)
        for size, (ours, paper) in differences.items():
            text = f"{ours:+.1f} (paper {paper:+.1f})"
            axes.annotate(
                text, (size, 0.02), xycoords=("data", "axes fraction"), ha="center", fontsize=8
            )
        axes.set_xlabel("rarest classes")
        axes.set_ylabel("test accuracy on them, %")
        axes.legend()
    return Drawn(
        name,
        f"Accuracy on the rarest classes, {material.dataset(dataset)['label']}",
        "Share of right answers among all test samples of the rarest classes by training images; "
        "mean over seeds, the band is one standard deviation."
        + (" Numbers: points by which the second line is above the first." if differences else ""),
    )


def _published_differences(
    material: Material, settings: Mapping[str, Any], data: pd.DataFrame
) -> dict[int, tuple[float, float]]:
    """Return by the number of classes how far, in points, the second method is above the first.

    Ours, and what the paper prints; none where it prints nothing.
    """
    published = published_table(settings.get("expected"), material.expected_dir)
    if published is None:
        return {}
    first, second = settings["methods"]
    means = 100 * data.groupby(["method", "classes"])["accuracy"].mean()
    rows = of_dataset(published, material.dataset(settings["dataset"]))
    values = dict(zip(rows["method"], map(float, rows["value"]), strict=True))
    found = {}
    for size in settings["sizes"]:
        name = str(settings["paper_method"]).format(size=size)
        if name in values:
            ours = means[second, size] - means[first, size]
            found[size] = (float(ours), values[name])
    return found
