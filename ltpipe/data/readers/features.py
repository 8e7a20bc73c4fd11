"""Embeddings computed elsewhere: HDF5, .npz, or .npy with labels in another .npy."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np

from ltpipe.data.sources import sorted_names
from ltpipe.data.untrusted import check_archive, plain_values
from ltpipe.utils.errors import InputError
from ltpipe.utils.io import printable
from ltpipe.utils.outside import checked

_LABELS = ("labels", "label")


def read_features(
    path: Path, labels_path: Path | None = None, names: Sequence[str] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Read embeddings and their labels.

    * HDF5 (.h5, .hdf5): data sets ``features`` and ``labels`` or ``label``.
    * .npz: arrays of the same names.
    * .npy: the features, with the labels in a second .npy file, `labels_path`.

    Labels may be (N,) or (N, 1) and stored as floats, if every one is a whole number, or as
    texts: then `names` are those of the classes, by default the texts of the file in order.

    Returns:
        (N, D) float32 and (N,) int64.

    Raises:
        InputError: a missing, damaged or foreign file, NaN or infinite features, labels that are
            negative or no integers, or shapes that do not agree.
    """
    if (path.suffix.lower() == ".npy") != (labels_path is not None) and path.is_file():
        raise InputError(f"{path}: a labels file belongs to a .npy feature file and to no other")
    if labels_path is None:
        features, labels = _arrays(path, ("features",), _LABELS)
    else:
        (features,), (labels,) = _arrays(path), _arrays(labels_path)
    features = _check_features(path, features)
    if (texts := _texts(labels)) is not None:
        return features, _numbers(labels_path or path, texts, len(features), names)
    return features, _check_labels(labels_path or path, labels, len(features))


def label_names(path: Path, labels_path: Path | None = None) -> list[str] | None:
    """Return the names of the classes where a file has them, or None.

    An array `class_names`, the attribute of that name in a feature store, or labels that are texts.

    Raises:
        InputError: as `read_features`.
    """
    if labels_path is not None:
        (labels,) = _arrays(labels_path)
    else:
        with contextlib.suppress(InputError):
            (names,) = _arrays(path, ("class_names",))
            return _texts(names)
        if (given := _attribute(path)) is not None:
            return given
        (labels,) = _arrays(path, _LABELS)
    texts = _texts(labels)
    return None if texts is None else sorted_names(texts)


def _attribute(path: Path) -> list[str] | None:
    if path.suffix.lower() not in {".h5", ".hdf5"}:
        return None
    with contextlib.suppress(OSError, ValueError, TypeError), h5py.File(checked(path), "r") as file:
        names = json.loads(file.attrs.get("class_names", "null"))
        if isinstance(names, list) and all(isinstance(name, str) for name in names):
            return names
    return None


def _texts(labels: np.ndarray) -> list[str] | None:
    """Return labels that are texts; None where they are numbers."""
    if labels.dtype.kind not in "USO":
        return None
    values = labels.reshape(-1).tolist()
    return [v.decode("utf-8", "replace") if isinstance(v, bytes) else str(v) for v in values]


def _numbers(path: Path, texts: list[str], rows: int, names: Sequence[str] | None) -> np.ndarray:
    if len(texts) != rows:
        raise InputError(f"{path}: {len(texts)} labels for {rows} rows of features")
    places = {name: place for place, name in enumerate(names or sorted_names(texts))}
    if unknown := sorted(set(texts) - places.keys()):
        raise InputError(f"{path}: label {unknown[0]!r} is no class of the training samples")
    return np.array([places[text] for text in texts], np.int64)


def read_unlabelled(path: Path) -> np.ndarray:
    """Read embeddings alone, (N, D) float32, from the same kinds of file; labels are ignored.

    Raises:
        InputError: a missing, damaged or foreign file, NaN or infinite features.
    """
    (features,) = _arrays(path, ("features",))
    return _check_features(path, features)


def _arrays(path: Path, *wanted: tuple[str, ...]) -> list[np.ndarray]:
    """Return of each group of names the first array that the file has; of .npy its only one."""
    suffix = path.suffix.lower()
    if not path.is_file():
        raise InputError(f"feature file {path} does not exist")
    try:
        if suffix == ".npy":
            return [np.load(checked(path), allow_pickle=False)]
        if suffix == ".npz":
            check_archive(checked(path))
            with np.load(path, allow_pickle=False) as archive:
                return [archive[name] for name in _names(path, archive.files, wanted)]
        if suffix in {".h5", ".hdf5"}:
            with h5py.File(checked(path), "r") as file:
                return [plain_values(file, name) for name in _names(path, list(file), wanted)]
    except InputError:
        raise
    # zipfile.BadZipFile and zlib.error have no common base but Exception.
    except Exception as error:
        raise InputError(f"feature file {printable(path)} can't be read: {error}") from error
    raise InputError(f"{path}: features are read from .h5, .hdf5, .npz or .npy")


def _names(path: Path, found: list[str], wanted: tuple[tuple[str, ...], ...]) -> list[str]:
    chosen = []
    for names in wanted:
        there = [name for name in names if name in found]
        if not there:
            known = ", ".join(sorted(found))
            raise InputError(f"{path} has no array {' or '.join(names)}, only {known}")
        chosen.append(there[0])
    return chosen


def _check_features(path: Path, features: np.ndarray) -> np.ndarray:
    if features.ndim != 2 or features.dtype.kind not in "fiu" or 0 in features.shape:
        raise InputError(
            f"{path}: features are {features.dtype} of shape {features.shape}, (N, D) numbers are "
            "needed"
        )
    features = np.ascontiguousarray(features, dtype=np.float32)
    finite = np.isfinite(features).all(axis=1)
    if not finite.all():
        raise InputError(f"{path}: features of row {int(np.argmin(finite))} are NaN or infinite")
    return features


def _check_labels(path: Path, labels: np.ndarray, rows: int) -> np.ndarray:
    if labels.shape not in {(rows,), (rows, 1)} or labels.dtype.kind not in "fiu":
        raise InputError(
            f"{path}: labels are {labels.dtype} of shape {labels.shape}, ({rows},) integers are "
            "needed"
        )
    labels = labels.reshape(rows)
    whole = (labels >= 0) & (labels < 2**31) & (labels == np.trunc(labels))
    if not whole.all():
        row = int(np.argmin(whole))
        raise InputError(f"{path}: label {labels[row]} of row {row} is no non-negative integer")
    return labels.astype(np.int64)
