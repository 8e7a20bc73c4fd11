"""Figures of data and features: class counts, t-SNE."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import h5py
import matplotlib
import numpy as np
import pandas as pd
from sklearn.manifold import TSNE

from ltpipe.evaluation.figures.base import (
    Drawn,
    Material,
    file_of,
    name_classes,
    plain_numbers,
)
from ltpipe.evaluation.records import read_class_counts
from ltpipe.evaluation.style import COLOURS
from ltpipe.utils.errors import InputError

_MAX_TSNE_SAMPLES = 2000


def class_distribution(material: Material, settings: Mapping[str, Any]) -> Drawn:
    """Training images of each class, from the largest to the smallest, on a log scale."""
    dataset = settings["dataset"]
    names, counts = read_class_counts(material.base / material.dataset(dataset)["folder"])
    order = np.argsort(-np.array(counts), kind="stable")
    data = pd.DataFrame(
        {"class": np.array(names)[order], "training_images": np.array(counts)[order]}
    )
    name = f"class-distribution-{dataset}"
    with file_of(material, name, data) as figure:
        axes = figure.subplots()
        places = np.arange(len(order))
        axes.bar(places, data["training_images"], color=COLOURS[0], width=0.85)
        axes.set_yscale("log")
        plain_numbers(axes.yaxis)
        axes.set_ylabel("training images")
        axes.grid(axis="x", visible=False)
        name_classes(axes, data["class"].tolist())
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
        units[backbone], labels = unit_features(material, dataset, backbone)
    panels = {backbone: units[backbone] for backbone in settings["backbones"]}
    if fused is not None:
        weight = fused["w1"]
        mixture = weight * units[fused["kps"]] + (1 - weight) * units[fused["ce"]]
        panels[f"fused, w1 = {weight:g}"] = mixture
    kept = some_samples(len(labels))
    places = {title: in_the_plane(values[kept]) for title, values in panels.items()}
    data = pd.concat(
        pd.DataFrame({"panel": title, "x": xy[:, 0], "y": xy[:, 1], "label": labels[kept]})
        for title, xy in places.items()
    )
    names, _ = read_class_counts(material.base / material.dataset(dataset)["folder"])
    name = f"tsne-{dataset}"
    with file_of(material, name, data, width=3.5 * len(panels), height=4.2) as figure:
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


def some_samples(number: int) -> np.ndarray:
    """Return the places of all of `number` samples, or of some where they are too many."""
    if number <= _MAX_TSNE_SAMPLES:
        return np.arange(number)
    return np.sort(np.random.default_rng(0).permutation(number)[:_MAX_TSNE_SAMPLES])


def in_the_plane(values: np.ndarray) -> np.ndarray:
    """Return the places (n, 2) of values (n, D) by t-SNE."""
    perplexity = min(30.0, max(2.0, (len(values) - 1) / 3))
    found = TSNE(random_state=0, init="pca", perplexity=perplexity, n_jobs=1)
    return found.fit_transform(values)


def unit_features(material: Material, dataset: str, backbone: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the first seed's test features (N, D) at unit length, and labels (N,)."""
    path = material.feature_file(dataset, backbone)
    try:
        with h5py.File(path, "r", locking=False) as file:
            features, labels = file["features"][()], file["labels"][()]
    except FileNotFoundError:
        raise InputError(f"{path}: no such feature file") from None
    except (OSError, KeyError, RuntimeError):
        raise InputError(f"{path}: not a readable feature file; delete it and run again") from None
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    return features / np.maximum(norms, 1e-12), labels
