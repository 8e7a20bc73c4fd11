"""The HDF5 feature store: one file a split, whole or absent, verified when read.

`features` (N, D) and `labels` (N,) lie where DLSA's code reads and writes them, so files can be
swapped both ways. Data sets are contiguous and unfiltered: compression costs far more time than
it saves space on embeddings, and a contiguous extent can be mapped into memory.
"""

from __future__ import annotations

import json
import os
import warnings
import zlib
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ltpipe.data.subset import read_texts, write_texts
from ltpipe.data.untrusted import plain_dataset
from ltpipe.plan.stages import MANIFEST
from ltpipe.utils.errors import InputError
from ltpipe.utils.io import atomic_path, printable
from ltpipe.utils.sharing import shared

FORMAT = "ltpipe-features/1"
_BLOCK_BYTES = 64 << 20
# From this size on, a data set is mapped and not read, so that features may exceed the memory.
MAPPED_FROM_BYTES = 256 << 20
# Mapped arrays are read-only, and so are tensors that share them: nothing here writes to either.
warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
# name -> number of axes and kind of number; the first axis of most is the sample.
_OPTIONAL = {
    "views": (3, "f"),
    "view_strength": (1, "f"),
    "logits": (2, "f"),
    "text": (2, "f"),
    "classifier_weight": (2, "f"),
    "classifier_bias": (1, "f"),
}


@dataclass(frozen=True)
class FeatureStore:
    """The contents of one feature file: in memory, or mapped and read-only if they are large.

    Shapes: `features` (N, D) float32, `labels` (N,) int64, `index` (N,) int64 places in the
    source; optional `views` (V, N, D), `view_strength` (V,) (0: the training augmentation alone;
    above: RandAugment for a sample of that memory), `logits` (N, C'), `text` (C, D), and
    the backbone's own classifier, `classifier_weight` (C', D) and `classifier_bias` (C',).
    `attributes` holds what else was written, such as backbone, checkpoint and view_seed.
    """

    path: Path
    features: np.ndarray
    labels: np.ndarray
    index: np.ndarray
    class_counts: list[int]
    class_names: list[str]
    views: np.ndarray | None = None
    view_strength: np.ndarray | None = None
    logits: np.ndarray | None = None
    text: np.ndarray | None = None
    classifier_weight: np.ndarray | None = None
    classifier_bias: np.ndarray | None = None
    attributes: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path | str, skip: Sequence[str] = ()) -> FeatureStore:
        """Open the file and check every data set's checksum.

        `skip` names optional data sets to leave on disk, such as `views`.

        Raises:
            InputError: the file is missing, foreign, incomplete or damaged, its shapes don't
                fit, or it holds NaN, infinities or labels out of range.
        """
        path = Path(path)
        if not (path.parent / MANIFEST).is_file():
            return cls._opened(path, skip)
        # No job changes an artifact; files elsewhere, such as folds, come and go.
        return shared(("features", str(path), *skip), lambda: cls._opened(path, skip))

    @classmethod
    def _opened(cls, path: Path, skip: Sequence[str]) -> FeatureStore:
        try:
            values, attributes = _read(path, skip)
        except FileNotFoundError:
            raise InputError(f"{path}: no such feature file") from None
        except (OSError, KeyError, RuntimeError, json.JSONDecodeError) as error:
            raise InputError(
                f"{path}: not a readable feature file ({_first_line(error)}); "
                "delete it and run again"
            ) from None
        counts = attributes.pop("class_counts")
        names = attributes.pop("class_names")
        store = cls(
            path=path, class_counts=counts, class_names=names, attributes=attributes, **values
        )
        _check(store)
        return store

    def standard_views(self) -> np.ndarray:
        """Return the views of the training augmentation alone, (V', N, D): those of strength 0.

        Raises:
            InputError: none are cached.
        """
        views = self.views
        if views is not None and self.view_strength is not None:
            standard = self.view_strength == 0
            number = int(standard.sum())
            # A slice, where they come first, leaves a mapped file on the disk.
            views = views[:number] if standard[:number].all() else views[standard]
        if views is None or not len(views):
            raise InputError(
                f"{self.path}: no augmented views are cached; set features.views of the backbone, "
                "or views: plain in the method"
            )
        return views


def open_foreign(path: Path) -> FeatureStore | None:
    """Return the contents of a feature file from elsewhere; None where it is of another format.

    Raises:
        InputError: as `FeatureStore.open`, or its values do not lie in the file itself.
    """
    if path.suffix.lower() not in (".h5", ".hdf5"):
        return None
    try:
        with h5py.File(path, "r", locking=False) as file:
            if file.attrs.get("format") != FORMAT:
                return None
            for name in file:
                plain_dataset(file, name)
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(f"feature file {printable(path)} can't be read: {error}") from None
    return FeatureStore.open(path)


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _read(path: Path, skip: Sequence[str]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    # Readers never meet a writer (files appear by rename), and locks fail on network disks.
    with h5py.File(path, "r", locking=False) as file:
        if file.attrs.get("format") != FORMAT:
            raise InputError(
                f"{path}: not an ltpipe feature file; to use embeddings from elsewhere, define a "
                "data set with source: features"
            )
        if not file.attrs.get("complete", False):
            raise InputError(f"{path}: the file was not finished; delete it and run again")
        values = {}
        for name in ("features", "labels", "index", *_OPTIONAL):
            if name in skip or (name in _OPTIONAL and name not in file):
                continue
            array = _array(path, file[name])
            if checksum(array) != file[name].attrs.get("crc32"):
                raise InputError(
                    f"{path}: data set {name!r} is damaged (checksum differs); delete the file "
                    "and run again"
                )
            values[name] = array
        attributes = {
            key: json.loads(value) if key in ("class_names", "class_counts") else value
            for key, value in file.attrs.items()
            if key not in ("format", "complete")
        }
    return values, attributes


def _array(path: Path, dataset: h5py.Dataset) -> np.ndarray:
    """Return a data set's values: small ones read, large ones mapped where they lie in the file."""
    offset = dataset.id.get_offset()
    if dataset.nbytes >= MAPPED_FROM_BYTES and offset is not None:
        return np.memmap(path, dataset.dtype, "r", offset, dataset.shape)
    array = np.empty(dataset.shape, dataset.dtype)
    if array.size:
        dataset.read_direct(array)
    return array


def _check(store: FeatureStore) -> None:
    samples = len(store.labels)
    if store.features.ndim != 2 or len(store.features) != samples or len(store.index) != samples:
        raise InputError(
            f"{store.path}: features {store.features.shape}, labels {store.labels.shape} and "
            f"index {store.index.shape} do not fit together"
        )
    classes = len(store.class_names)
    if len(store.class_counts) != classes:
        raise InputError(f"{store.path}: {classes} class names, {len(store.class_counts)} counts")
    check_labels(store.labels, classes, str(store.path))
    for name in ("features", *_OPTIONAL):
        array = getattr(store, name)
        if array is not None and not _all_finite(array):
            raise InputError(f"{store.path}: {name} holds NaN or infinite values")
    if store.views is not None and store.views.shape[1:] != store.features.shape:
        raise InputError(
            f"{store.path}: views {store.views.shape} do not fit features {store.features.shape}"
        )
    strength = store.view_strength
    if strength is not None and store.views is not None and len(strength) != len(store.views):
        raise InputError(
            f"{store.path}: {len(store.views)} views, {len(strength)} numbers in view_strength"
        )
    if store.text is not None and store.text.shape != (classes, store.features.shape[1]):
        raise InputError(
            f"{store.path}: text {store.text.shape} does not fit {classes} classes and features "
            f"{store.features.shape}"
        )


def check_labels(labels: np.ndarray, classes: int, where: str) -> None:
    """Raise InputError unless every label is one of 0 .. classes - 1."""
    if labels.size and (labels.min() < 0 or labels.max() >= classes):
        bad = labels[(labels < 0) | (labels >= classes)][0]
        raise InputError(f"{where}: label {bad} is out of range; there are {classes} classes")


def _all_finite(array: np.ndarray) -> bool:
    """Check block by block, so that no copy as large as the array is made."""
    flat = array.reshape(-1)
    step = max(1, _BLOCK_BYTES // max(1, array.itemsize))
    return all(
        bool(np.isfinite(flat[start : start + step]).all()) for start in range(0, len(flat), step)
    )


def checksum(array: np.ndarray) -> int:
    """Return the CRC-32 of the array's bytes in C order."""
    return zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


@dataclass(frozen=True)
class Blocks:
    """An array of three axes too large to hold: its shape, its type, its values block by block.

    `values` yields arrays that, one after the other, are the whole array in C order.
    """

    shape: tuple[int, ...]
    dtype: str
    values: Iterable[np.ndarray]

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)


def write_features(
    path: Path | str,
    *,
    features: np.ndarray,
    labels: np.ndarray,
    class_names: Sequence[str],
    class_counts: Sequence[int],
    index: np.ndarray | None = None,
    attributes: Mapping[str, str | int | float | bool | list[float]] | None = None,
    paths: Sequence[str] | None = None,
    **optional: np.ndarray | Blocks | None,
) -> None:
    """Write a feature file: to a temporary name, synced, renamed.

    Shapes are those of `FeatureStore`; `optional` takes views, view_strength, logits, text,
    classifier_weight and classifier_bias. `index` defaults to 0 .. N - 1. `paths` are what image
    files are called, see `read_paths`. The attribute `complete` is written last.

    Raises:
        InputError: shapes don't fit, a number is not finite, a label is out of range.
        TypeError: an unknown optional data set.
    """
    unknown = set(optional) - set(_OPTIONAL)
    if unknown:
        raise TypeError(f"unknown data sets: {', '.join(sorted(unknown))}")
    if np.asarray(labels).dtype.kind not in "iu":
        raise InputError(f"{path}: labels must be whole numbers, not {np.asarray(labels).dtype}")
    arrays: dict[str, np.ndarray] = {
        "features": np.ascontiguousarray(features, dtype=np.float32),
        "labels": np.ascontiguousarray(labels, dtype=np.int64),
        "index": np.arange(len(labels)) if index is None else np.asarray(index, dtype=np.int64),
    }
    streams: dict[str, Blocks] = {}
    for name, array in optional.items():
        if array is None:
            continue
        dimensions, kind = _OPTIONAL[name]
        if array.ndim != dimensions or np.dtype(array.dtype).kind != kind:
            raise InputError(
                f"{path}: {name} must be a floating-point array with {dimensions} axes, "
                f"not {array.dtype} {array.shape}"
            )
        if isinstance(array, Blocks):
            streams[name] = array
        else:
            arrays[name] = np.ascontiguousarray(array)
    _check(
        FeatureStore(
            path=Path(path),
            class_counts=list(class_counts),
            class_names=list(class_names),
            **arrays,  # type: ignore[arg-type]
        )
    )
    # Format 1.8 and later lets an attribute, such as thousands of class names, exceed 64 KiB.
    with atomic_path(path) as temporary:
        with h5py.File(temporary, "w", locking=False, libver=("v108", "latest")) as file:
            file.attrs["format"] = FORMAT
            file.attrs["class_names"] = json.dumps(list(class_names), ensure_ascii=False)
            file.attrs["class_counts"] = json.dumps([int(count) for count in class_counts])
            for key, value in (attributes or {}).items():
                file.attrs[key] = value
            # Checksums run beside the writing: neither needs the interpreter's lock.
            with ThreadPoolExecutor(1) as beside:
                sums = {name: beside.submit(checksum, array) for name, array in arrays.items()}
                for name, array in arrays.items():
                    file.create_dataset(name, data=array)
                # The disk can take what is written while the checksums go on.
                os.fsync(file.id.get_vfd_handle())
                for name, total in sums.items():
                    file[name].attrs["crc32"] = total.result()
            for name, blocks in streams.items():
                _write_blocks(file, name, blocks, path)
            if paths is not None:
                write_texts(file, "paths", paths)
            file.attrs["complete"] = True


def read_paths(path: Path | str) -> list[str] | None:
    """Return what the image files of a feature file's samples are called; None where they are none.

    Raises:
        InputError: the file can't be read.
    """
    try:
        with h5py.File(path, "r", locking=False) as file:
            return read_texts(file, "paths") if "paths" in file else None
    except (OSError, RuntimeError) as error:
        raise InputError(f"{path}: not a readable feature file ({_first_line(error)})") from None


def _write_blocks(file: h5py.File, name: str, blocks: Blocks, path: Path | str) -> None:
    """Fill a contiguous data set in C order; its checksum runs along."""
    shape = blocks.shape
    dataset = file.create_dataset(name, shape=shape, dtype=blocks.dtype)
    rows = int(np.prod(shape[:-1]))
    value, row = 0, 0
    for block in blocks.values:
        block = np.ascontiguousarray(block, dtype=blocks.dtype).reshape(-1, shape[-1])
        if not np.isfinite(block).all():
            raise InputError(f"{path}: {name} holds NaN, or values too large for {blocks.dtype}")
        value = zlib.crc32(block.reshape(-1).view(np.uint8).data, value)
        for part in _runs(row, len(block), shape):
            dataset[part.where] = block[part.start : part.stop]
        row += len(block)
    if row != rows:
        raise ValueError(f"{name}: {row} rows were given for shape {shape}")
    dataset.attrs["crc32"] = value


@dataclass(frozen=True)
class _Run:
    where: tuple[int | slice, ...]
    start: int
    stop: int


def _runs(row: int, count: int, shape: tuple[int, ...]) -> Iterable[_Run]:
    """Cut `count` rows of the flattened array from `row` on where the first axis turns over."""
    per_item = int(np.prod(shape[1:-1]))
    done = 0
    while done < count:
        item, offset = divmod(row + done, per_item)
        take = min(count - done, per_item - offset)
        yield _Run((item, slice(offset, offset + take)), done, done + take)
        done += take
