"""The samples held out of training, by which a method chooses something."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ltpipe.artifacts.job import Job
from ltpipe.artifacts.reading import open_artifact
from ltpipe.data.longtail import split_validation
from ltpipe.features.store import FeatureStore, write_features
from ltpipe.plan.layout import VALIDATION_SHARE
from ltpipe.plan.stages import MANIFEST


def held_out_files(job: Job, role: str, scratch: Path) -> tuple[Path, Path]:
    """Return the training and the held-out features of a role, as feature files.

    They are those of the data set's own validation part, or of a backbone that was trained without
    the held-out samples. A network that was not trained here has seen none of them: its training
    features are split, a tenth of each class by a fixed seed, into two files in `scratch`.
    """
    tuning = job.tuning(role)
    train, held_out = (job.file(tuning, f"{split}.h5") for split in ("train", "val"))
    has_samples = len(FeatureStore.open(held_out, skip=("views",)).labels)
    if has_samples or not _is_frozen(job.inputs[tuning]):
        return train, held_out
    store = FeatureStore.open(train)
    parts = split_validation(store.labels, 0, VALIDATION_SHARE)
    paths = scratch / f"{role}-train.h5", scratch / f"{role}-val.h5"
    counts = np.bincount(store.labels[parts[0]], minlength=len(store.class_names)).tolist()
    for path, rows in zip(paths, parts, strict=True):
        write_features(
            path,
            features=store.features[rows],
            labels=store.labels[rows],
            index=store.index[rows],
            class_names=store.class_names,
            class_counts=counts,
            attributes=store.attributes,
            views=None if store.views is None else store.views[:, rows],
            view_strength=store.view_strength,
            logits=None if store.logits is None else store.logits[rows],
            text=store.text,
            classifier_weight=store.classifier_weight,
            classifier_bias=store.classifier_bias,
        )
    return paths


def _is_frozen(folder: Path) -> bool:
    """Return whether features are of a network of the plan that was not trained here."""
    if not (folder / MANIFEST).is_file():
        return False
    spec = open_artifact(folder).spec
    return spec["kind"] == "features" and "seed" not in spec
