"""The first job: decide which samples an experiment uses."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ltpipe.artifacts.job import Job
from ltpipe.config.datasets import FeaturesDataset
from ltpipe.data.expectations import check_expected, check_expected_labels
from ltpipe.data.loading import dataset_settings
from ltpipe.data.readers.features import read_features
from ltpipe.data.subset import draw, draw_from_labels, write_subset
from ltpipe.utils.errors import InputError
from ltpipe.utils.outside import read_bytes
from ltpipe.utils.paths import locate
from ltpipe.utils.progress import say

# No published image is larger; a source that pads its images refuses a smaller size.
_ANY_SIZE = 1 << 16


def run(job: Job) -> dict[str, Any]:
    """Draw the subset of `job.spec["dataset"]` and write subset.h5.

    Raises:
        InputError: the data set is missing, damaged or not the expected one, or a class has no
            training sample.
    """
    settings = _settings(job.spec["dataset"])
    options = {
        "imbalance": settings.imbalance,
        "profile": settings.profile,
        "max_count": settings.max_count,
        "rounding": settings.rounding,
        "seed": settings.subset_seed,
        "val_fraction": settings.val_fraction,
        "class_order": settings.class_order,
    }
    if isinstance(settings, FeaturesDataset):
        names, train, val, test = _feature_labels(settings, job.root)
        check_expected_labels(names, train, val, test, settings.expect, settings.source)
        subset = draw_from_labels(names, train, val, test, **options)
    else:
        source = settings.read(job.root)
        check_expected(source, settings.expect, settings.source)
        subset = draw(source, **options)
    write_subset(job.output / "subset.h5", subset)
    counts = subset.class_counts
    say(
        f"drew {len(subset.train_index)} training samples of {len(counts)} classes "
        f"({max(counts)} to {min(counts)} a class), {len(subset.val_index)} to validate, "
        f"{len(subset.test_index)} to test; draw {subset.digest}"
    )
    return {"draw": subset.digest}


def _settings(identity: Mapping[str, Any]) -> Any:
    """Return the data set's settings; only labels are read, so any size that holds the images."""
    if identity["source"] == "features":
        return dataset_settings(identity)
    return dataset_settings({**identity, "input": {"size": [_ANY_SIZE] * 2}})


def _feature_labels(
    settings: FeaturesDataset, root: Path | None
) -> tuple[list[str], np.ndarray, np.ndarray | None, np.ndarray]:
    """Return class names and the labels of train, val and test; all stores must agree on them."""
    first: dict[str, np.ndarray | None] | None = None
    for name, store in settings.stores.items():
        labels: dict[str, np.ndarray | None] = {}
        for split in ("train", "val", "test"):
            file = getattr(store, split)
            beside = getattr(store, f"{split}_labels")
            labels[split] = (
                None
                if file is None
                else read_features(locate(file, root), beside and locate(beside, root))[1]
            )
        if first is None:
            first = labels
        for split, values in labels.items():
            if not np.array_equal(values, first[split]):  # type: ignore[arg-type]
                raise InputError(
                    f"stores.{name}.{split}: the labels differ from those of the first store; "
                    "every store must hold the same samples in the same order"
                )
    assert first is not None and first["train"] is not None and first["test"] is not None
    if settings.class_names is not None:
        path = locate(settings.class_names, root)
        names = [line for line in read_bytes(path).decode("utf-8").splitlines() if line.strip()]
    else:
        names = [str(label) for label in range(int(first["train"].max()) + 1)]
    return names, first["train"], first["val"], first["test"]
