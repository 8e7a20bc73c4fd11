"""Which samples of a data set an experiment uses, as a file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from ltpipe.data.longtail import class_counts, draw_subset, split_validation
from ltpipe.data.sources import Source
from ltpipe.utils.errors import InputError, nearest
from ltpipe.utils.io import atomic_path

FORMAT = "ltpipe-subset/1"
CLASS_ORDERS = ("natural", "shuffled")
_ARRAYS = ("train_index", "train_labels", "val_index", "val_labels", "test_index", "test_labels")


@dataclass(frozen=True, eq=False)
class Subset:
    """A seeded choice of samples. Indices and labels are (n,) int64.

    Attributes:
        class_names: name of class c.
        class_counts: training samples of class c, after the draw and the validation split.
        train_index: positions in the source's training part; `val_index` in the part that
            `val_part` ("train" or "val") names; `test_index` in the test part.
        digest: first 16 hex digits of the SHA-256 of `train_index` and `train_labels`.
        seed, imbalance, profile: what the draw was asked for; imbalance None takes everything.
    """

    class_names: list[str]
    class_counts: list[int]
    train_index: np.ndarray
    train_labels: np.ndarray
    val_index: np.ndarray
    val_labels: np.ndarray
    test_index: np.ndarray
    test_labels: np.ndarray
    val_part: str
    digest: str
    seed: int
    imbalance: float | None
    profile: str


def draw(
    source: Source,
    *,
    imbalance: float | None,
    profile: str,
    max_count: int | None,
    rounding: str = "floor",
    seed: int,
    val_fraction: float,
    class_order: str,
) -> Subset:
    """Draw a subset of an opened data set; see `draw_from_labels`."""
    return draw_from_labels(
        source.class_names,
        *source.labels,
        imbalance=imbalance,
        profile=profile,
        max_count=max_count,
        rounding=rounding,
        seed=seed,
        val_fraction=val_fraction,
        class_order=class_order,
    )


def draw_from_labels(
    class_names: Sequence[str],
    train: np.ndarray,
    val: np.ndarray | None,
    test: np.ndarray | None,
    *,
    imbalance: float | None,
    profile: str,
    max_count: int | None,
    rounding: str = "floor",
    seed: int,
    val_fraction: float,
    class_order: str,
) -> Subset:
    """Choose training samples by a long-tailed profile, and set validation samples aside.

    Args:
        class_names: name of class c.
        train: (N,) labels of the training part; `val` and `test` likewise, if there are any.
        imbalance: largest / smallest class; None takes all training samples as they are.
        profile: see `ltpipe.data.longtail.class_counts`.
        max_count: size of the largest class; None is the size of the source's smallest class, the
            most that every class has.
        rounding: see `class_counts`.
        seed: of the draw, the class order and the validation split.
        val_fraction: share of each class's chosen training samples that becomes the validation
            set; 0 uses the source's own validation part, or none if it has none.
        class_order: ``natural`` (class 0 is the largest) or ``shuffled`` (by `seed`).

    Raises:
        InputError: a class without training samples, a label without a name, or settings that the
            source can't satisfy.
    """
    names = list(class_names)
    for part, labels in (("training", train), ("validation", val), ("test", test)):
        if (
            labels is not None
            and len(labels)
            and not 0 <= labels.min() <= labels.max() < len(names)
        ):
            raise InputError(
                f"{part} labels reach from {labels.min()} to {labels.max()} but there are "
                f"{len(names)} classes"
            )
    if class_order not in CLASS_ORDERS:
        raise InputError(
            f"unknown class_order {class_order!r}{nearest(class_order, CLASS_ORDERS)}: "
            f"one of {', '.join(CLASS_ORDERS)}"
        )
    available = np.bincount(train, minlength=len(names))
    if not available.all():
        empty = int(np.argmin(available))
        raise InputError(
            f"class {empty} ({names[empty]}) has no training sample: add one or leave the class out"
        )
    if imbalance is None:
        if max_count is not None:
            raise InputError("max_count needs imbalance: without it all samples are taken")
        index = np.arange(len(train))
    else:
        wanted = np.array(
            class_counts(
                len(names), max_count or int(available.min()), imbalance, profile, rounding
            )
        )
        if class_order == "shuffled":
            ranks = np.random.RandomState(seed).permutation(len(names))
            wanted[ranks] = wanted.copy()
        for label in np.flatnonzero(wanted > available):
            raise InputError(
                f"class {label} ({names[label]}) has {available[label]} training samples but "
                f"{wanted[label]} are asked for: lower max_count"
            )
        index = draw_subset(train, wanted.tolist(), seed)
    val_index, val_labels, val_part = _empty(), _empty(), "train"
    if val_fraction:
        kept, taken = split_validation(train[index], seed, val_fraction)
        val_index, index = index[taken], index[kept]
        val_labels = train[val_index]
    elif val is not None:
        val_index, val_labels, val_part = np.arange(len(val)), val, "val"
    test_labels = _empty() if test is None else test
    train_labels = train[index]
    return Subset(
        class_names=names,
        class_counts=np.bincount(train_labels, minlength=len(names)).tolist(),
        train_index=index,
        train_labels=train_labels,
        val_index=val_index,
        val_labels=val_labels,
        test_index=np.arange(len(test_labels)),
        test_labels=test_labels,
        val_part=val_part,
        digest=_sha256(index, train_labels)[:16],
        seed=seed,
        imbalance=imbalance,
        profile=profile,
    )


def write_subset(path: Path, subset: Subset) -> None:
    """Write `subset` to an HDF5 file, whole or not at all."""
    arrays = [getattr(subset, name) for name in _ARRAYS]
    with atomic_path(path) as temporary, h5py.File(temporary, "w") as file:
        for name, array in zip(_ARRAYS, arrays, strict=True):
            file.create_dataset(name, data=array, dtype="<i8")
        file.create_dataset("class_counts", data=subset.class_counts, dtype="<i8")
        file.attrs["format"] = FORMAT
        file.attrs["class_names"] = json.dumps(subset.class_names, ensure_ascii=False)
        file.attrs["val_part"] = subset.val_part
        file.attrs["digest"] = subset.digest
        file.attrs["checksum"] = _sha256(*arrays)
        file.attrs["seed"] = subset.seed
        file.attrs["imbalance"] = json.dumps(subset.imbalance)
        file.attrs["profile"] = subset.profile
        file.attrs["complete"] = True


def read_subset(path: Path) -> Subset:
    """Read a file of `write_subset` and verify its checksum.

    Raises:
        InputError: the file is missing, damaged, or not such a file.
    """
    try:
        with h5py.File(path, "r") as file:
            if file.attrs.get("format") != FORMAT or not file.attrs.get("complete"):
                raise InputError(f"{path} is not a complete {FORMAT} file: make it again")
            arrays = {name: file[name][()] for name in _ARRAYS}
            if _sha256(*arrays.values()) != file.attrs["checksum"]:
                raise InputError(f"subset file {path} is damaged (checksum): make it again")
            return Subset(
                class_names=json.loads(file.attrs["class_names"]),
                class_counts=file["class_counts"][()].tolist(),
                **arrays,
                val_part=file.attrs["val_part"],
                digest=file.attrs["digest"],
                seed=int(file.attrs["seed"]),
                imbalance=json.loads(file.attrs["imbalance"]),
                profile=file.attrs["profile"],
            )
    except InputError:
        raise
    except (OSError, KeyError, RuntimeError, ValueError) as error:
        raise InputError(f"subset file {path} can't be read: {error}") from error


def _empty() -> np.ndarray:
    return np.empty(0, dtype=np.int64)


def _sha256(*arrays: np.ndarray) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array, dtype="<i8").tobytes())
    return digest.hexdigest()
