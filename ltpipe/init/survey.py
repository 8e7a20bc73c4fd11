"""What a user's images or embeddings are like: classes, imbalance, sizes, damage."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ltpipe.data.drawing import feature_labels, located, split_options
from ltpipe.data.opening import dataset_settings
from ltpipe.data.readers.features import read_features
from ltpipe.data.sources import Part, Source
from ltpipe.data.subset import Subset, draw_from_labels
from ltpipe.evaluation.metrics import GROUPS, group_of_classes
from ltpipe.init.duplicates import Sample, describe_copies, find_copies
from ltpipe.init.finding import Found, find_data
from ltpipe.utils.errors import InputError
from ltpipe.utils.paths import data_root

# Side at which the sample is decoded: enough to find damage and to take statistics.
_SAMPLE_SIDE = 32


@dataclass(frozen=True)
class ImageFacts:
    """What a sample of the images is like.

    Attributes:
        total: number of images; `sizes` (n, 2) holds height and width of those that were opened.
        modes: how many have each of Pillow's modes.
        grey: whether all are without colour.
        mean, std: of the training images' values in 0 .. 1.
        damaged: a line for each image that can't be used.
    """

    total: int
    sizes: np.ndarray
    modes: dict[str, int]
    grey: bool
    mean: float
    std: float
    damaged: list[str]
    looked_at: int


@dataclass(frozen=True)
class FeatureFacts:
    """Dimensions of embeddings and the range of their norms."""

    dimension: int
    norms: tuple[float, float]


@dataclass(frozen=True)
class Survey:
    """What there is.

    Attributes:
        dataset: the source and its files, as an experiment file names them.
        title: what it is, in words.
        class_names: name of class c.
        train: (C,) training samples of each class; `val` and `test` likewise, `val` None where
            there are none.
        split_off: the test samples are a part of what was found, for want of a test set.
        notes: what the user should know about the files.
    """

    dataset: dict[str, Any]
    title: str
    class_names: list[str]
    train: np.ndarray
    val: np.ndarray | None
    test: np.ndarray
    split_off: bool
    images: ImageFacts | None = None
    features: FeatureFacts | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def imbalance(self) -> float:
        """Largest over smallest training class."""
        return float(self.train.max() / self.train.min())

    def group_sizes(self, rule: str) -> dict[str, int]:
        """Return how many classes are many-, medium- and few-shot by `rule`."""
        found = Counter(group_of_classes(self.train.tolist(), rule))
        return {name: found[name] for name in GROUPS}


def survey(
    path: Path,
    images: Path | None,
    sample: int,
    imbalance: float | None = None,
    draws: int | None = None,
) -> Survey:
    """Look at images or embeddings; see `ltpipe.init.finding.find_data`.

    Args:
        sample: how many images to open at most, spread over all classes; 0 opens all.
        imbalance: of the long-tailed subset to draw, as benchmarks are made of balanced data.
        draws: how many subsets to draw.

    Raises:
        InputError: nothing is there, or the product could not train on it as it is.
    """
    if sample < 0:
        raise InputError(f"--sample {sample}: give a number of images, or 0 for all")
    if imbalance is not None and imbalance < 1:
        raise InputError(f"--imbalance {imbalance:g}: at least 1")
    if draws is not None and (draws < 1 or imbalance is None):
        raise InputError(f"--draws {draws}: a number of subsets that --imbalance asks for")
    found = find_data(path, images)
    if imbalance is not None:
        found.dataset["imbalance"] = imbalance
    features = found.dataset["source"] == "features"
    seen = _survey_features(found) if features else _survey_images(found, sample)
    if draws is not None:
        seen.dataset["subset_seeds"] = list(range(draws))
    return seen


def _survey_images(found: Found, sample: int) -> Survey:
    given = {**found.dataset, "input": {"size": [_SAMPLE_SIDE] * 2, "orientation": "exif"}}
    settings = dataset_settings(given)
    source = settings.read(data_root(None))
    facts, damaged = _look_at(source, sample)
    subset = _drawn(source.class_names, source.labels, settings, damaged)
    samples = [
        Sample(part.images.paths[place], source.class_names[part.labels[place]], split)
        for split in ("train", "val", "test")
        if (part := getattr(source, subset.part(split))) is not None
        for place in getattr(subset, f"{split}_index")
    ]
    return Survey(
        dataset=found.dataset,
        title=found.title,
        split_off=source.test is None,
        images=facts,
        notes=[*found.notes, *describe_copies(find_copies(samples))],
        **_counts(subset),
    )


def _drawn(
    names: list[str],
    labels: tuple[np.ndarray, np.ndarray | None, np.ndarray | None],
    settings: Any,
    damaged: Mapping[str, Mapping[int, str]] | None = None,
) -> Subset:
    """Return what an experiment would be given, by the product's own checks."""
    if len(names) < 2:
        raise InputError(f"all training samples are of one class ({names[0]}): two are needed")
    return draw_from_labels(
        names,
        *labels,
        imbalance=settings.imbalance,
        profile="exp",
        max_count=None,
        seed=0,
        val_fraction=0.0,
        class_order="natural",
        unusable=damaged,
        **split_options(settings, labels[2] is not None),
    )


def _counts(subset: Subset) -> dict[str, Any]:
    classes = len(subset.class_names)
    return {
        "class_names": subset.class_names,
        "train": np.array(subset.class_counts),
        "val": np.bincount(subset.val_labels, minlength=classes)
        if len(subset.val_labels)
        else None,
        "test": np.bincount(subset.test_labels, minlength=classes),
    }


def _look_at(source: Source, sample: int) -> tuple[ImageFacts, dict[str, dict[int, str]]]:
    """Open a sample of the images, spread evenly over the classes of all parts.

    Returns what they are like, and why some can't be used, by part and position.
    """
    named = {"train": source.train, "val": source.val, "test": source.test}
    parts = {name: part for name, part in named.items() if part is not None}
    total = sum(len(part.labels) for part in parts.values())
    chosen = np.arange(total)
    if sample and sample < total:
        chosen = np.unique(np.linspace(0, total - 1, sample).astype(np.int64))
    opened: list[_Opened] = []
    damaged: dict[str, dict[int, str]] = {}
    training = start = 0
    for name, part in parts.items():
        end = start + len(part.labels)
        damaged[name] = {}
        for place in (chosen[(chosen >= start) & (chosen < end)] - start).tolist():
            try:
                part.images.load(np.array([place]))
                opened.append(_open(part, place))
            except InputError as error:
                damaged[name][place] = str(error)
        start = end
        training = training or len(opened)
    reasons = [reason for found in damaged.values() for reason in found.values()]
    if not opened:
        raise InputError(f"no image can be read; the first of {len(reasons)}: {reasons[0]}")
    mean, square = np.mean([image.moments for image in opened[:training]], axis=0)
    facts = ImageFacts(
        total=total,
        sizes=np.array([image.size for image in opened]),
        modes=dict(Counter(image.mode for image in opened).most_common()),
        grey=all(image.grey for image in opened),
        mean=float(mean),
        std=float(np.sqrt(square - mean**2)),
        damaged=reasons,
        looked_at=len(chosen),
    )
    return facts, damaged


@dataclass(frozen=True)
class _Opened:
    """An image's (height, width), mode, whether it is grey, and its mean and mean square."""

    size: tuple[int, int]
    mode: str
    grey: bool
    moments: tuple[float, float]


def _open(part: Part, place: int) -> _Opened:
    paths: list[Path] = part.images.paths  # type: ignore[attr-defined]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with Image.open(paths[place]) as image:
            values = np.asarray(image.convert("RGB"), dtype=np.float32) / 255
            return _Opened(
                size=(image.height, image.width),
                mode=image.mode,
                grey=bool((values == values[..., :1]).all()),
                moments=(float(values.mean()), float((values**2).mean())),
            )


def _survey_features(found: Found) -> Survey:
    settings, root = dataset_settings(found.dataset), data_root(None)
    names, train, val, test = feature_labels(settings, root)
    (store,) = settings.stores.values()
    norms = np.zeros(1)
    dimensions: dict[str, int] = {}
    for split in ("train", "val", "test"):
        files = located(store, split, root)
        if files is not None:
            features, _ = read_features(*files, names)
            dimensions[files[0].name] = features.shape[1]
            if split == "train":
                norms = np.linalg.norm(features, axis=1)
    if len(set(dimensions.values())) > 1:
        told = ", ".join(f"{name}: {number}" for name, number in dimensions.items())
        raise InputError(f"{store.train}: the files differ in their dimensions ({told})")
    subset = _drawn(names, (train, val, test), settings)
    return Survey(
        dataset=found.dataset,
        title=found.title,
        split_off=store.test is None,
        features=FeatureFacts(
            dimension=next(iter(dimensions.values())),
            norms=(float(norms.min()), float(norms.max())),
        ),
        notes=found.notes,
        **_counts(subset),
    )
