"""The first job: decide which samples an experiment uses."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ltpipe.artifacts.job import Job
from ltpipe.config.datasets import FeaturesDataset, SplitSettings, StoreFiles
from ltpipe.data.expectations import check_expected, check_expected_labels
from ltpipe.data.images import FileImages, find_damaged
from ltpipe.data.opening import dataset_settings
from ltpipe.data.readers.features import label_names, read_features
from ltpipe.data.sources import Source, check_classes
from ltpipe.data.subset import draw, draw_from_labels, write_subset
from ltpipe.utils.errors import InputError
from ltpipe.utils.outside import read_bytes
from ltpipe.utils.paths import locate
from ltpipe.utils.progress import say

# Unless the settings say otherwise.
TEST_FRACTION = 0.2
_SHOWN = 5
# No published image is larger; a source that pads its images refuses a smaller size.
_ANY_SIZE = 1 << 16


def run(job: Job) -> dict[str, Any]:
    """Draw the subset of `job.spec["dataset"]` and write subset.h5.

    Raises:
        InputError: the data set is missing, damaged or not the expected one, or a class has no
            training sample.
    """
    settings = _settings(job.spec["dataset"])
    options: dict[str, Any] = {
        "imbalance": settings.imbalance,
        "profile": settings.profile,
        "max_count": settings.max_count,
        "rounding": settings.rounding,
        "seed": settings.subset_seed,
        "val_fraction": settings.val_fraction,
        "class_order": settings.class_order,
    }
    if isinstance(settings, FeaturesDataset):
        names, train, val, test = feature_labels(settings, job.root)
        check_expected_labels(names, train, val, test, settings.expect, settings.source)
        options |= split_options(settings, test is not None)
        subset = draw_from_labels(names, train, val, test, **options)
    else:
        source = settings.read(job.root)
        check_expected(source, settings.expect, settings.source)
        options |= split_options(settings, source.test is not None)
        if getattr(settings, "damaged", "stop") == "skip":
            options["unusable"] = unusable_images(source)
        subset = draw(source, **options)
    write_subset(job.output / "subset.h5", subset)
    counts = subset.class_counts
    say(
        f"drew {len(subset.train_index)} training samples of {len(counts)} classes "
        f"({max(counts)} to {min(counts)} a class), {len(subset.val_index)} to validate, "
        f"{len(subset.test_index)} to test; draw {subset.digest}"
    )
    if subset.left_out:
        say(f"left out {len(subset.left_out)} images that can't be used, such as")
        say("\n".join(f"  {reason}" for reason in subset.left_out[:_SHOWN]))
    return {"draw": subset.digest}


def split_options(settings: Any, has_test: bool) -> dict[str, Any]:
    """Return how test samples are split off, as `draw_from_labels` is told.

    Raises:
        InputError: a share is given and there are test samples.
    """
    if not isinstance(settings, SplitSettings):
        return {}
    if has_test:
        if settings.test_fraction is not None:
            raise InputError(
                "the data set has test samples of its own, so test_fraction must not be given"
            )
        return {}
    fraction = TEST_FRACTION if settings.test_fraction is None else settings.test_fraction
    return {"test_fraction": fraction, "split_seed": settings.split_seed}


def unusable_images(source: Source) -> dict[str, dict[int, str]]:
    """Return the image files that can't be used, and why, by part and position."""
    parts = {"train": source.train, "val": source.val, "test": source.test}
    return {
        name: find_damaged(part.images.paths)
        for name, part in parts.items()
        if part is not None and isinstance(part.images, FileImages)
    }


def _settings(identity: Mapping[str, Any]) -> Any:
    """Return the data set's settings; only labels are read, so any size that holds the images."""
    if identity["source"] == "features":
        return dataset_settings(identity)
    return dataset_settings({**identity, "input": {"size": [_ANY_SIZE] * 2}})


def feature_labels(
    settings: FeaturesDataset, root: Path | None
) -> tuple[list[str], np.ndarray, np.ndarray | None, np.ndarray | None]:
    """Return class names and the labels of train, val and test; all stores must agree on them."""
    first: dict[str, np.ndarray | None] | None = None
    names = _class_names(settings, root)
    for name, store in settings.stores.items():
        labels: dict[str, np.ndarray | None] = {}
        for split in ("train", "val", "test"):
            files = located(store, split, root)
            labels[split] = None if files is None else read_features(*files, names)[1]
        if first is None:
            first = labels
        for split, values in labels.items():
            if not np.array_equal(values, first[split]):  # type: ignore[arg-type]
                raise InputError(
                    f"stores.{name}.{split}: the labels differ from those of the first store; "
                    "every store must hold the same samples in the same order"
                )
    assert first is not None and first["train"] is not None
    if names is None:
        check_classes(first["train"])
        names = [str(label) for label in range(int(first["train"].max()) + 1)]
    return names, first["train"], first["val"], first["test"]


def _class_names(settings: FeaturesDataset, root: Path | None) -> list[str] | None:
    if settings.class_names is not None:
        path = locate(settings.class_names, root)
        lines = read_bytes(path).decode("utf-8").splitlines()
        return [line for line in lines if line.strip()]
    files = located(next(iter(settings.stores.values())), "train", root)
    assert files is not None
    return label_names(*files)


def located(store: StoreFiles, split: str, root: Path | None) -> tuple[Path, Path | None] | None:
    """Return the files of a split's features and of its labels; None where it has none."""
    file, beside = getattr(store, split), getattr(store, f"{split}_labels")
    if file is None:
        return None
    return locate(file, root), None if beside is None else locate(beside, root)
