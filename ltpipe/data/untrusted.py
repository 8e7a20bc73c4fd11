"""Arrays in files from elsewhere: their own values, in no more memory than they are worth.

HDF5 can take values from other files, from programs, or from nowhere, and a small compressed file
can fill any memory. What is compressed a hundredfold is taken up to a size that does no harm.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np

_HARMLESS_BYTES = 1 << 30
_MAX_RATIO = 100


def plain_values(file: h5py.File, name: str) -> np.ndarray:
    """Return the values of a data set that lie in the file itself, all of them written.

    Raises:
        ValueError: they do not, or they are far more than the file holds; says which.
    """
    values: np.ndarray = plain_dataset(file, name)[()]
    return values


def plain_dataset(file: h5py.File, name: str) -> h5py.Dataset:
    """Return a data set whose values lie in the file itself, all of them written.

    Raises:
        ValueError: as `plain_values`.
    """
    link = file.get(name, getlink=True)
    if not isinstance(link, h5py.HardLink):
        raise ValueError(f"{name} is a link; write the values themselves into the file")
    dataset: Any = file[name]
    if not isinstance(dataset, h5py.Dataset) or dataset.shape is None:
        raise ValueError(f"{name} holds no array")
    if dataset.is_virtual or dataset.external:
        raise ValueError(f"{name} lies in other files; write the values into this one")
    if dataset.dtype.hasobject and h5py.check_string_dtype(dataset.dtype) is None:
        raise ValueError(f"{name} holds {dataset.dtype} values; numbers or texts are needed")
    stored = dataset.id.get_storage_size()
    if dataset.chunks is not None and dataset.size:
        chunks = np.prod([-(-n // c) for n, c in zip(dataset.shape, dataset.chunks, strict=True)])
        written = dataset.id.get_num_chunks() == chunks
    else:
        written = stored >= dataset.nbytes
    if not written:
        raise ValueError(f"not all of {name} was written")
    _check_size(name, dataset.nbytes, stored)
    return dataset


def check_archive(path: Path) -> None:
    """Look at the sizes of what an npz file holds before any is unpacked.

    Raises:
        ValueError: far more than the file holds.
        zipfile.BadZipFile, OSError: it can't be read.
    """
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            _check_size(entry.filename, entry.file_size, entry.compress_size)


def _check_size(name: str, size: int, stored: int) -> None:
    if size > max(_HARMLESS_BYTES, _MAX_RATIO * stored):
        raise ValueError(f"{name} would take {size:,} bytes, of {stored:,} in the file")
