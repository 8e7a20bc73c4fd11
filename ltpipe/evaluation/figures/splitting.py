"""Figures of CWS: accuracy over a setting of stage one, subclasses over the epochs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import matplotlib
import numpy as np
import pandas as pd

from ltpipe.artifacts.reading import checked_file
from ltpipe.evaluation.figures.base import Drawn, Material, file_of
from ltpipe.evaluation.records import read_class_counts
from ltpipe.evaluation.tables import METRIC_TITLES, PLAIN
from ltpipe.utils.errors import InputError


def setting_curve(material: Material, settings: Mapping[str, Any]) -> Drawn:
    """A metric over a setting of the methods' backbones, a line a group of methods.

    CWS, Fig. 4; the levels of a line, where no setting applies, are dashed. Runs that did not
    converge are left out.
    """
    dataset, setting, metric = settings["dataset"], settings["setting"], settings["metric"]
    records = material.records
    of_dataset = records[
        (records["dataset"] == dataset)
        & (records["metric"] == metric)
        & ~records["protocol"].str.startswith("best_test")
    ]
    rows = []
    for line, places in settings["lines"].items():
        level = settings.get("levels", {}).get(line)
        points = sorted(places.items(), key=lambda item: item[1])
        for method, place in [*points, *([(level, np.nan)] if level else [])]:
            values = of_dataset[of_dataset["method"] == method]["value"]
            if values.empty:
                raise InputError(f"figures: {method} was not run on {dataset}; see runs")
            found = (values.mean(), values.std(ddof=1), int(values.notna().sum()))
            rows.append((line, method, place, *found))
    data = pd.DataFrame(rows, columns=["line", "method", setting, "mean", "sd", "seeds"])
    stem = "-".join(filter(None, ("setting", setting, settings["name"], dataset)))
    # Settings such as 0.5, 0.9, 0.99, 0.999 crowd at one end: places are evenly spaced.
    values = sorted(data[setting].dropna().unique())
    unit = 1 if metric in PLAIN else 100
    with file_of(material, stem.lower(), data) as figure:
        axes = figure.subplots()
        for line, every in data.groupby("line", sort=False):
            part = every[every[setting].notna()]
            places = [values.index(value) for value in part[setting]]
            mean, sd = unit * part["mean"], unit * part["sd"].fillna(0)
            drawn = axes.errorbar(places, mean, yerr=sd, marker="o", capsize=3, label=line)
            for level in unit * every["mean"][every[setting].isna()]:
                axes.axhline(level, color=drawn[0].get_color(), linestyle="--", linewidth=1)
        axes.set_xticks(range(len(values)), [f"{value:g}" for value in values])
        axes.set_xlabel(setting)
        axes.set_ylabel(f"test {METRIC_TITLES[metric]}" + (", %" if unit == 100 else ""))
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    kind = f", {settings['name']}" if settings["name"] else ""
    return Drawn(
        stem.lower(),
        f"{METRIC_TITLES[metric].capitalize()} over {setting}{kind}, "
        f"{material.dataset(dataset)['label']}",
        f"Mean and standard deviation over {data['seeds'].max()} seeds, last epoch; values of "
        f"{setting} are evenly spaced."
        + (f" Dashed: without {setting}." if settings.get("levels") else ""),
    )


def subclass_occupancy(material: Material, settings: Mapping[str, Any]) -> Drawn:
    """The share of its class's samples that each subclass is given, over the epochs."""
    dataset, backbone = settings["dataset"], settings["backbone"]
    names, counts = read_class_counts(material.base / material.dataset(dataset)["folder"])
    data, seeds = _occupancy(material, dataset, backbone)
    split = data.groupby("class")["subclass"].max()
    shown = [label for label in np.argsort(-np.array(counts), kind="stable") if split[label] > 0]
    shown = shown[: settings["classes"]]
    if not shown:
        raise InputError(f"figures: {backbone} splits no class of {dataset}")
    data = data[data["class"].isin(shown)]
    name = f"occupancy-{backbone}-{dataset}".lower()
    width = 1.2 + 2.3 * len(shown)
    with file_of(material, name, data, width=max(5.0, width), height=3.2) as figure:
        all_axes = np.atleast_1d(figure.subplots(1, len(shown), sharey=True))
        most = int(split[shown].max()) + 1
        colours = matplotlib.colormaps["viridis_r"](np.linspace(0.08, 1, most))
        for axes, label in zip(all_axes, shown, strict=True):
            shares = data[data["class"] == label].pivot(
                index="epoch", columns="subclass", values="share"
            )
            axes.stackplot(shares.index + 1, 100 * shares.to_numpy().T, colors=colours, linewidth=0)
            axes.set_title(f"{names[label]}: {counts[label]} images", fontsize=11)
            axes.set_xlabel("epoch")
            axes.set_xlim(1, shares.index.max() + 1)
            axes.set_ylim(0, 100)
            axes.grid(visible=False)
        all_axes[0].set_ylabel("of the class's samples, %")
        levels = matplotlib.colors.BoundaryNorm(np.arange(most + 1) + 0.5, most)
        mapped = matplotlib.cm.ScalarMappable(levels, matplotlib.colors.ListedColormap(colours))
        bar = figure.colorbar(mapped, ax=all_axes, label="shell, from the centre")
        ticks = np.unique(np.linspace(1, most, min(most, 5)).round().astype(int))
        bar.set_ticks(ticks.tolist())
    return Drawn(
        name,
        f"Subclasses of {backbone} over the epochs, {material.dataset(dataset)['label']}",
        f"Share of each class's samples in its shells; "
        f"{f'mean over {seeds} seeds' if seeds > 1 else 'one seed'}. "
        "The first shell is the one around the centre.",
    )


def _occupancy(material: Material, dataset: str, backbone: str) -> tuple[pd.DataFrame, int]:
    """Return rows (epoch, class, subclass, share), means over seeds, and how many seeds."""
    parts = []
    for row in material.spec["stage1"]:
        if row["dataset"] == dataset and row["backbone"] == backbone:
            path = checked_file(material.base / row["folder"], "occupancy.csv")
            try:
                parts.append(pd.read_csv(path))
            except (OSError, ValueError):
                raise InputError(f"{path}: missing or damaged; run {backbone} again") from None
    if not parts:
        raise InputError(f"figures: {backbone} was not trained on {dataset}")
    for part in parts:
        total = part.groupby(["epoch", "class"])["samples"].transform("sum")
        part["share"] = part["samples"] / total.clip(lower=1)
    shares = pd.concat(parts).groupby(["epoch", "class", "subclass"])["share"].mean()
    return shares.reset_index(), len(parts)
