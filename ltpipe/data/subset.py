"""Which samples of a data set an experiment uses, as a file."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ltpipe.data.longtail import class_counts, draw_subset, split_test, split_validation
from ltpipe.data.sources import Source
from ltpipe.utils.errors import InputError, nearest
from ltpipe.utils.io import atomic_path

FORMAT = "ltpipe-subset/1"
CLASS_ORDERS = ("natural", "shuffled")
_ARRAYS = ("train_index", "train_labels", "val_index", "val_labels", "test_index", "test_labels")
_WRITTEN = (*_ARRAYS, "class_counts")
_TEXTS = ("train_paths", "val_paths", "test_paths", "left_out")


@dataclass(frozen=True, eq=False)
class Subset:
    """A seeded choice of samples. Indices and labels are (n,) int64.

    Attributes:
        class_names: name of class c.
        class_counts: training samples of class c, after the draw and the validation split.
        train_index: positions in the source's training part; `val_index` in the part that
            `val_part` ("train" or "val") names; `test_index` in the test part.
        test_part: "test", or "train" where the test samples were split off the training part.
        digest: first 16 hex digits of the SHA-256 of `train_index` and `train_labels`.
        seed, imbalance, profile: what the draw was asked for; imbalance None takes everything.
        paths: of image files, what the samples of each split are called, by split.
        left_out: a line for each sample that can't be used and is none of the splits'.
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
    test_part: str = "test"
    paths: Mapping[str, list[str]] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)

    def part(self, split: str) -> str:
        """Return the name of the source's part that the positions of a split count in."""
        return {"train": "train", "val": self.val_part, "test": self.test_part}[split]


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
    unusable: Mapping[str, Mapping[int, str]] | None = None,
    test_fraction: float = 0.0,
    split_seed: int = 0,
) -> Subset:
    """Draw a subset of an opened data set; see `draw_from_labels`.

    `unusable` are the samples to leave out, by part and position, with the reason of each.
    """
    unusable = unusable or {}
    subset = draw_from_labels(
        source.class_names,
        *source.labels,
        imbalance=imbalance,
        profile=profile,
        max_count=max_count,
        rounding=rounding,
        seed=seed,
        val_fraction=val_fraction,
        class_order=class_order,
        unusable=unusable,
        test_fraction=test_fraction,
        split_seed=split_seed,
    )
    parts = {"train": source.train, "val": source.val, "test": source.test}
    paths = {}
    for split in parts:
        part = parts[subset.part(split)]
        if part is not None and part.paths is not None:
            index = getattr(subset, f"{split}_index")
            paths[split] = [part.paths[place] for place in index.tolist()]
    reasons = [reason for found in unusable.values() for reason in found.values()]
    return dataclasses.replace(subset, paths=paths, left_out=reasons)


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
    unusable: Mapping[str, Collection[int]] | None = None,
    test_fraction: float = 0.0,
    split_seed: int = 0,
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
        unusable: positions that no split may hold, by part.
        test_fraction: share of each class's training samples that becomes the test set, where
            there is none, by `split_seed` and before anything else is drawn.

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
    left = _usable(train, (unusable or {}).get("train", ()))
    test_index = _empty() if test is None else _usable(test, (unusable or {}).get("test", ()))
    if test_fraction:
        kept, taken = split_test(train[left], split_seed, test_fraction)
        test, test_index, left = train, left[taken], left[kept]
    available = np.bincount(train[left], minlength=len(names))
    if not available.all():
        empty = int(np.argmin(available))
        raise InputError(
            f"class {empty} ({names[empty]}) has no training sample: add one or leave the class out"
        )
    if imbalance is None:
        if max_count is not None:
            raise InputError("max_count needs imbalance: without it all samples are taken")
        index = left
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
        index = left[draw_subset(train[left], wanted.tolist(), seed)]
    val_index, val_labels, val_part = _empty(), _empty(), "train"
    if val_fraction:
        kept, taken = split_validation(train[index], seed, val_fraction)
        val_index, index = index[taken], index[kept]
        val_labels = train[val_index]
    elif val is not None:
        val_index, val_part = _usable(val, (unusable or {}).get("val", ())), "val"
        val_labels = val[val_index]
    test_labels = _empty() if test is None else test[test_index]
    train_labels = train[index]
    return Subset(
        class_names=names,
        class_counts=np.bincount(train_labels, minlength=len(names)).tolist(),
        train_index=index,
        train_labels=train_labels,
        val_index=val_index,
        val_labels=val_labels,
        test_index=test_index,
        test_labels=test_labels,
        val_part=val_part,
        test_part="train" if test_fraction else "test",
        digest=_sha256(index, train_labels)[:16],
        seed=seed,
        imbalance=imbalance,
        profile=profile,
    )


def write_subset(path: Path, subset: Subset) -> None:
    """Write `subset` to an HDF5 file, whole or not at all."""
    arrays = {name: np.asarray(getattr(subset, name), "<i8") for name in _WRITTEN}
    attributes: dict[str, Any] = {
        "format": FORMAT,
        "class_names": json.dumps(subset.class_names, ensure_ascii=False),
        "val_part": subset.val_part,
        "test_part": subset.test_part,
        "digest": subset.digest,
        "seed": subset.seed,
        "imbalance": json.dumps(subset.imbalance),
        "profile": subset.profile,
        "checksum": _sha256(*(arrays[name] for name in _ARRAYS)),
    }
    texts = {f"{split}_paths": list(paths) for split, paths in subset.paths.items()}
    texts["left_out"] = list(subset.left_out)
    with atomic_path(path) as temporary, h5py.File(temporary, "w") as file:
        for name, array in arrays.items():
            file.create_dataset(name, data=array)
        for name, values in texts.items():
            write_texts(file, name, values)
        file.attrs.update({**attributes, "content": _content(arrays, attributes, texts)})
        file.attrs["complete"] = True


def read_subset(path: Path) -> Subset:
    """Read a file of `write_subset` and verify its checksums.

    Raises:
        InputError: the file is missing, damaged, or not such a file.
    """
    try:
        with h5py.File(path, "r") as file:
            if file.attrs.get("format") != FORMAT or not file.attrs.get("complete"):
                raise InputError(f"{path} is not a complete {FORMAT} file: make it again")
            arrays = {name: file[name][()] for name in _WRITTEN}
            texts = {name: read_texts(file, name) for name in _TEXTS if name in file}
            attributes = dict(file.attrs)
    except InputError:
        raise
    except (OSError, KeyError, RuntimeError, ValueError) as error:
        raise InputError(f"subset file {path} can't be read: {error}") from error
    # The first versions summed up indices and labels alone.
    content = attributes.get("content")
    checksum = _sha256(*(arrays[name] for name in _ARRAYS))
    whole = content in (None, _content(arrays, attributes, texts))
    if checksum != attributes.get("checksum") or not whole:
        raise InputError(f"subset file {path} is damaged (checksum): make it again")
    return Subset(
        class_names=json.loads(attributes["class_names"]),
        class_counts=arrays.pop("class_counts").tolist(),
        **arrays,
        val_part=attributes["val_part"],
        test_part=attributes.get("test_part", "test"),
        paths={
            split: texts[f"{split}_paths"]
            for split in ("train", "val", "test")
            if f"{split}_paths" in texts
        },
        left_out=texts.get("left_out", []),
        digest=attributes["digest"],
        seed=int(attributes["seed"]),
        imbalance=json.loads(attributes["imbalance"]),
        profile=attributes["profile"],
    )


def _content(
    arrays: Mapping[str, np.ndarray],
    attributes: Mapping[str, Any],
    texts: Mapping[str, Sequence[str]],
) -> str:
    """Return the SHA-256 of all that a file says, its marks of being whole aside."""
    said = [
        f"{key}={value}"
        for key, value in sorted(attributes.items())
        if key not in ("content", "complete")
    ]
    said += [f"{name} {arrays[name].shape} {_sha256(arrays[name])}" for name in sorted(arrays)]
    said += [f"{name} {len(texts[name])}\0" + "\0".join(texts[name]) for name in sorted(texts)]
    return hashlib.sha256("\0".join(said).encode("utf-8", "surrogateescape")).hexdigest()


def write_texts(file: h5py.File, name: str, texts: Sequence[str]) -> None:
    """Write texts, such as names of files, which need not be proper UTF-8, as a data set."""
    values = [text.encode("utf-8", "surrogateescape") for text in texts]
    file.create_dataset(name, data=np.array(values, dtype=object), dtype=h5py.string_dtype())


def read_texts(file: h5py.File, name: str) -> list[str]:
    """Return what `write_texts` wrote."""
    return [value.decode("utf-8", "surrogateescape") for value in file[name][()].tolist()]


def _usable(labels: np.ndarray, unusable: Collection[int]) -> np.ndarray:
    """Return the positions of the samples that may be used, (n,) int64."""
    return np.setdiff1d(np.arange(len(labels)), np.fromiter(unusable, np.int64))


def _empty() -> np.ndarray:
    return np.empty(0, dtype=np.int64)


def _sha256(*arrays: np.ndarray) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array, dtype="<i8").tobytes())
    return digest.hexdigest()
