"""The samples held out of training, by which a method chooses something."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ltpipe.artifacts.job import Job
from ltpipe.artifacts.reading import open_artifact
from ltpipe.data.longtail import split_validation
from ltpipe.features.store import FeatureStore, write_features
from ltpipe.plan.layout import VALIDATION_SHARE
from ltpipe.plan.stages import MANIFEST


def held_out_stores(
    job: Job, role: str, skip: Sequence[str] = ()
) -> tuple[FeatureStore, FeatureStore]:
    """Return the training and the held-out features of a role.

    They are those of the data set's own validation part, or of a backbone that was trained without
    the held-out samples. A network that was not trained here has seen none of them: its training
    features are split, a tenth of each class by a fixed seed. `skip` is that of
    `FeatureStore.open`.
    """
    tuning = job.tuning(role)
    train = FeatureStore.open(job.file(tuning, "train.h5"), skip)
    held_out = FeatureStore.open(job.file(tuning, "val.h5"), (*skip, "views"))
    if len(held_out.labels) or not _is_frozen(job.inputs[tuning]):
        return train, held_out
    kept, taken = split_validation(train.labels, 0, VALIDATION_SHARE)
    counts = np.bincount(train.labels[kept], minlength=len(train.class_names)).tolist()
    return _part(train, kept, counts), _part(train, taken, counts)


def _part(store: FeatureStore, rows: np.ndarray, counts: list[int]) -> FeatureStore:
    return replace(
        store,
        features=store.features[rows],
        labels=store.labels[rows],
        index=store.index[rows],
        class_counts=counts,
        views=None if store.views is None else store.views[:, rows],
        logits=None if store.logits is None else store.logits[rows],
    )


def folds_of(labels: np.ndarray, folds: int) -> np.ndarray:
    """Return the fold (N,) of each sample, -1 for the only one of a class, which is in none.

    Folds hold equal shares of each class but for rounding, which goes round the folds.
    """
    stream, found, start = np.random.RandomState(0), np.full(len(labels), -1), 0
    for label in np.unique(labels):
        places = stream.permutation(np.flatnonzero(labels == label))
        if len(places) > 1:
            found[places] = (start + np.arange(len(places))) % folds
            start += len(places)
    return found


def fold_files(job: Job, role: str, folds: int, scratch: Path) -> Iterator[tuple[Path, Path]]:
    """Yield for each fold of the training features the files of the others and of its own.

    They lie in `scratch` until the next fold is asked for.
    """
    train = FeatureStore.open(job.file(f"features.{role}", "train.h5"))
    fold = folds_of(train.labels, folds)
    for place in range(folds):
        kept, taken = np.flatnonzero(fold != place), np.flatnonzero(fold == place)
        counts = np.bincount(train.labels[kept], minlength=len(train.class_names)).tolist()
        folder = scratch / f"{role}-{place}"
        folder.mkdir()
        yield _files([_part(train, rows, counts) for rows in (kept, taken)], folder)
        shutil.rmtree(folder)


def held_out_files(job: Job, role: str, scratch: Path) -> tuple[Path, Path]:
    """Return what `held_out_stores` does as files; those that are split lie in `scratch`."""
    tuning = job.tuning(role)
    own = job.file(tuning, "train.h5"), job.file(tuning, "val.h5")
    stores = held_out_stores(job, role)
    if stores[0].path == own[0] and stores[1].path == own[1]:
        return own
    folder = scratch / f"{role}-split"
    folder.mkdir(parents=True)
    return _files(stores, folder)


def _files(stores: Sequence[FeatureStore], folder: Path) -> tuple[Path, Path]:
    paths = folder / "train.h5", folder / "val.h5"
    for path, store in zip(paths, stores, strict=True):
        write_features(
            path,
            features=store.features,
            labels=store.labels,
            index=store.index,
            class_names=store.class_names,
            class_counts=store.class_counts,
            attributes=store.attributes,
            views=store.views,
            view_strength=store.view_strength,
            logits=store.logits,
            text=store.text,
            classifier_weight=store.classifier_weight,
            classifier_bias=store.classifier_bias,
        )
    return paths


def best_place(accuracies: Sequence[float]) -> int:
    """Return the place of the best one; of equals, which few samples make, that in the middle."""
    equals = np.flatnonzero(np.isclose(accuracies, max(accuracies)))
    return int(equals[len(equals) // 2])


def mean_class_accuracy(predicted: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean accuracy of the classes that have samples, for labels (N,)."""
    counts = np.bincount(labels)
    hits = np.bincount(labels, weights=predicted == labels)
    return float((hits[counts > 0] / counts[counts > 0]).mean())


def _is_frozen(folder: Path) -> bool:
    """Return whether features are of a network of the plan that was not trained here."""
    if not (folder / MANIFEST).is_file():
        return False
    spec = open_artifact(folder).spec
    return spec["kind"] in ("features", "import") and "seed" not in spec
