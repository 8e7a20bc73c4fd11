"""The papers' figures, from the artifacts of finished jobs.

Each figure is written as PNG and SVG, with the data behind it as CSV, and with the same bytes for
the same data.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cycler
import h5py
import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from sklearn.manifold import TSNE
from sklearn.metrics import confusion_matrix

from ltpipe.errors import InputError
from ltpipe.evaluation.records import read_class_counts, read_history, read_predictions
from ltpipe.evaluation.tables import METRIC_TITLES, published_curve

# Okabe and Ito's palette, which colour-blind readers can tell apart.
_COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442"]
_STYLE: dict[Any, Any] = {
    "figure.facecolor": "white",
    "axes.prop_cycle": cycler.cycler(color=_COLOURS),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "axes.axisbelow": True,
    "font.size": 11,
    "legend.frameon": False,
    "svg.hashsalt": "ltpipe",
    "svg.fonttype": "path",
}
_MAX_TSNE_SAMPLES = 2000


@dataclass(frozen=True)
class Drawn:
    """A finished figure: the stem of its files in the folder, its title, what it shows."""

    name: str
    title: str
    caption: str


@dataclass(frozen=True)
class Material:
    """What figures are drawn from: the report's spec, all records, the folders to use."""

    spec: Mapping[str, Any]
    records: pd.DataFrame
    base: Path
    output: Path
    expected_dir: Path

    def dataset(self, name: str) -> Mapping[str, Any]:
        return self.spec["datasets"][name]

    def label(self, method: str) -> str:
        return next(r["label"] for r in self.spec["results"] if r["method"] == method)

    def folders(self, dataset: str, method: str) -> list[Path]:
        """Return a method's result folders on a data set, by seed."""
        found = [
            self.base / result["folder"]
            for result in sorted(self.spec["results"], key=lambda result: result["seed"])
            if result["dataset"] == dataset and result["method"] == method
        ]
        if not found:
            raise InputError(f"figures: {method} was not run on {dataset}; see runs")
        return found

    def feature_file(self, dataset: str, backbone: str) -> Path:
        """Return the test features of the first seed."""
        for row in sorted(self.spec["features"], key=lambda row: row["seed"]):
            if row["dataset"] == dataset and row["backbone"] == backbone:
                return self.base / row["folder"] / "test.h5"
        raise InputError(f"figures: no run caches the features of {backbone} on {dataset}")


def draw_figures(material: Material) -> list[Drawn]:
    """Draw every figure of the spec, in its order."""
    draw: dict[str, Callable[[Material, Mapping[str, Any]], Drawn]] = {
        "class_distribution": class_distribution,
        "per_class_accuracy": per_class_accuracy,
        "sweep_curve": sweep_curve,
        "tsne": tsne,
        "confusion": confusion,
        "training_curves": training_curves,
        "cluster_sizes": cluster_sizes,
        "cluster_purity": cluster_purity,
        "separation": separation,
    }
    with matplotlib.rc_context(_STYLE):
        return [draw[settings["kind"]](material, settings) for settings in material.spec["figures"]]


@contextmanager
def _figure(
    material: Material, name: str, data: pd.DataFrame, width: float = 7.0, height: float = 3.8
) -> Iterator[Figure]:
    """Give an empty figure, then write it and the data behind it."""
    figure = Figure(figsize=(width, height), layout="constrained")
    yield figure
    material.output.mkdir(parents=True, exist_ok=True)
    figure.savefig(material.output / f"{name}.png", dpi=160, metadata={"Software": None})
    figure.savefig(material.output / f"{name}.svg", metadata={"Date": None, "Creator": None})
    data.to_csv(material.output / f"{name}.csv", index=False)


def class_distribution(material: Material, settings: Mapping[str, Any]) -> Drawn:
    """Training images of each class, from the largest to the smallest, on a log scale."""
    dataset = settings["dataset"]
    names, counts = read_class_counts(material.base / material.dataset(dataset)["folder"])
    order = np.argsort(-np.array(counts), kind="stable")
    data = pd.DataFrame(
        {"class": np.array(names)[order], "training_images": np.array(counts)[order]}
    )
    name = f"class-distribution-{dataset}"
    with _figure(material, name, data) as figure:
        axes = figure.subplots()
        places = np.arange(len(order))
        axes.bar(places, data["training_images"], color=_COLOURS[0], width=0.85)
        axes.set_yscale("log")
        axes.set_ylabel("training images")
        axes.grid(axis="x", visible=False)
        _name_classes(axes, data["class"].tolist())
        if len(order) <= 20:
            for place, count in zip(places, data["training_images"], strict=True):
                axes.annotate(str(count), (place, count), ha="center", va="bottom", fontsize=9)
    title = f"Training images a class, {material.dataset(dataset)['label']}"
    ratio = max(counts) / min(counts)
    return Drawn(
        name,
        title,
        f"{sum(counts)} images of {len(counts)} classes; the largest has {ratio:.0f} times the "
        "images of the smallest.",
    )


def _name_classes(axes: Any, names: list[str]) -> None:
    if len(names) <= 20:
        long = max(map(len, names)) > 4
        axes.set_xticks(
            range(len(names)), names, rotation=45 if long else 0, ha="right" if long else "center"
        )
        axes.set_xlabel("class, by training images" if not long else "")
    else:
        axes.set_xlabel("class, by rank of training images")


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
            & records["protocol"].str.startswith("last")
            & records["parameters"].map(lambda text: _point_matches(text, settings["at"]))
        ]
        means = chosen.groupby("class")["value"].mean()
        data[material.label(method)] = means.reindex(order).to_numpy()
    name = f"per-class-accuracy-{dataset}"
    with _figure(material, name, data) as figure:
        axes = figure.subplots()
        behind = axes.twinx()
        behind.bar(range(len(order)), data["training_images"], color="#d9d9d9", width=0.9)
        behind.set_yscale("log")
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
        _name_classes(axes, data["class"].tolist())
        longest = max(len(material.label(method)) for method in methods)
        columns = max(1, min(len(methods), 72 // (longest + 6)))
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=columns)
    point = ", ".join(f"{key} = {value:g}" for key, value in settings["at"].items())
    return Drawn(
        name,
        f"Accuracy of each class, {material.dataset(dataset)['label']}",
        "Mean over seeds, last epoch"
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
    with _figure(material, name, data) as figure:
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
    return Drawn(
        name,
        f"{material.label(method)} over {parameter}, {material.dataset(dataset)['label']}",
        f"Mean over {int(data['seeds'].max())} seeds, last epoch; the band is one standard "
        "deviation.",
    )


def tsne(material: Material, settings: Mapping[str, Any]) -> Drawn:
    """t-SNE of the test features of each backbone, and of FFN's mixture.

    FFN, Fig. 5.
    """
    dataset = settings["dataset"]
    units: dict[str, np.ndarray] = {}
    labels = np.empty(0, np.int64)
    fused = settings["fused"]
    wanted = [*settings["backbones"], *([] if fused is None else [fused["ce"], fused["kps"]])]
    for backbone in dict.fromkeys(wanted):
        features, labels = _read_features(material.feature_file(dataset, backbone))
        norms = np.linalg.norm(features, axis=1, keepdims=True)
        units[backbone] = features / np.maximum(norms, 1e-12)
    panels = {backbone: units[backbone] for backbone in settings["backbones"]}
    if fused is not None:
        weight = fused["w1"]
        mixture = weight * units[fused["kps"]] + (1 - weight) * units[fused["ce"]]
        panels[f"fused, w1 = {weight:g}"] = mixture
    kept = np.arange(len(labels))
    if len(kept) > _MAX_TSNE_SAMPLES:
        kept = np.sort(np.random.default_rng(0).permutation(kept)[:_MAX_TSNE_SAMPLES])
    perplexity = min(30.0, max(2.0, (len(kept) - 1) / 3))
    places = {
        title: TSNE(random_state=0, init="pca", perplexity=perplexity, n_jobs=1).fit_transform(
            values[kept]
        )
        for title, values in panels.items()
    }
    data = pd.concat(
        pd.DataFrame({"panel": title, "x": xy[:, 0], "y": xy[:, 1], "label": labels[kept]})
        for title, xy in places.items()
    )
    names, _ = read_class_counts(material.base / material.dataset(dataset)["folder"])
    name = f"tsne-{dataset}"
    with _figure(material, name, data, width=3.5 * len(panels), height=4.2) as figure:
        colours = matplotlib.colormaps["tab10" if len(names) <= 10 else "turbo"]
        all_axes = np.atleast_1d(figure.subplots(1, len(panels)))
        for axes, (title, xy) in zip(all_axes, places.items(), strict=True):
            for label in range(len(names)):
                of_class = labels[kept] == label
                colour = colours(label if len(names) <= 10 else label / (len(names) - 1))
                axes.scatter(*xy[of_class].T, s=9, color=colour, linewidths=0, label=names[label])
            axes.set_title(title, fontsize=11)
            axes.set_xticks([])
            axes.set_yticks([])
            axes.spines[:].set_visible(True)
            axes.spines[:].set_color("#bdbdbd")
        if len(names) <= 20:
            handles, texts = all_axes[0].get_legend_handles_labels()
            figure.legend(
                handles,
                texts,
                loc="outside lower center",
                ncols=10,
                markerscale=2,
                columnspacing=0.9,
                handletextpad=0.1,
            )
    return Drawn(
        name,
        f"Test features by t-SNE, {material.dataset(dataset)['label']}",
        f"{len(kept)} test images, unit features, first seed; colours are classes.",
    )


def _read_features(path: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        with h5py.File(path, "r", locking=False) as file:
            return file["features"][()], file["labels"][()]
    except FileNotFoundError:
        raise InputError(f"{path}: no such feature file") from None
    except (OSError, KeyError, RuntimeError):
        raise InputError(f"{path}: not a readable feature file; delete it and run again") from None


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
    share = sorted_matrix / np.maximum(sorted_matrix.sum(1, keepdims=True), 1)
    data = pd.DataFrame(share, columns=names)
    data.insert(0, "true_class", names)
    name = f"confusion-{method}-{dataset}".lower()
    with _figure(material, name, data, width=5.6, height=4.8) as figure:
        axes = figure.subplots()
        image = axes.imshow(100 * share, cmap="Blues", vmin=0, vmax=100)
        axes.grid(visible=False)
        if len(names) <= 20:
            axes.set_xticks(
                range(len(names)), names, rotation=45 if max(map(len, names)) > 3 else 0
            )
            axes.set_yticks(range(len(names)), names)
            for row, column in np.argwhere(share >= 0.005):
                axes.annotate(
                    f"{100 * share[row, column]:.0f}",
                    (column, row),
                    ha="center",
                    va="center",
                    fontsize=8,
                    color="white" if share[row, column] > 0.55 else "#333333",
                )
        axes.set_xlabel("predicted class")
        axes.set_ylabel("true class, largest first")
        figure.colorbar(image, label="% of the true class", shrink=0.85)
    point = ", ".join(f"{key} = {value:g}" for key, value in settings["at"].items())
    return Drawn(
        name,
        f"Confusion of {material.label(method)}, {material.dataset(dataset)['label']}",
        "Percent of each true class, all seeds together" + (f", {point}" if point else "") + ".",
    )


def training_curves(material: Material, settings: Mapping[str, Any]) -> Drawn:
    """Loss and training accuracy of each backbone over epochs, mean over seeds."""
    dataset = settings["dataset"]
    tables = []
    for row in material.spec["stage1"]:
        if row["dataset"] == dataset:
            history = read_history(material.base / row["folder"])
            tables.append(history.assign(backbone=row["backbone"], seed=row["seed"]))
    if not tables:
        raise InputError(f"figures: no backbone was trained on {dataset}")
    data = pd.concat(tables, ignore_index=True).drop(columns="seconds")
    name = f"training-{dataset}"
    with _figure(material, name, data, height=3.4) as figure:
        left, right = figure.subplots(1, 2)
        for backbone, part in data.groupby("backbone", sort=False):
            mean = part.groupby("epoch")[["loss", "accuracy"]].mean()
            left.plot(mean.index + 1, mean["loss"], label=backbone)
            right.plot(mean.index + 1, 100 * mean["accuracy"], label=backbone)
        left.set_ylabel("training loss")
        right.set_ylabel("training accuracy, %")
        left.set_yscale("log")
        for axes in (left, right):
            axes.set_xlabel("epoch")
        right.legend(loc="lower right")
    return Drawn(
        name,
        f"Stage one, {material.dataset(dataset)['label']}",
        "Means over seeds. Accuracy is that of augmented (and, where set, mixed) training batches.",
    )


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
    with _figure(material, name, data) as figure:
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
    with _figure(material, name, data) as figure:
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
    with _figure(material, name, data, height=5.0) as figure:
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
