"""Files from outside as a job reads them: bytes that are not those of the plan are refused."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from ltpipe.utils.errors import InputError
from ltpipe.utils.io import open_regular, printable

# The SHA-256 of each planned file by its absolute path. Of the process and not of a context,
# because images are decoded by threads.
_expected: Mapping[str, str] = {}
_strict = False
_AGAIN = "plan again: start the run anew"


@contextmanager
def holding(expected: Mapping[str, str], *, strict: bool = False) -> Iterator[None]:
    """Hold the files that are read from here on against `expected`, absolute path to SHA-256.

    A file that no plan speaks of, such as weights that a hub was asked for by name, is read as it
    is unless `strict`.
    """
    global _expected, _strict
    before = _expected, _strict
    _expected, _strict = expected, strict
    try:
        yield
    finally:
        _expected, _strict = before


def hold(expected: Mapping[str, str], *, strict: bool) -> None:
    """Hold files as `holding` does until this process ends: for one that another started."""
    global _expected, _strict
    _expected, _strict = expected, strict


def planned() -> tuple[Mapping[str, str], bool]:
    """Return what files are held against now, and whether strictly."""
    return _expected, _strict


def read_bytes(path: Path, limit: int | None = None) -> bytes:
    """Return the bytes of a file, at most `limit`.

    Raises:
        InputError: there are more, they are not those that the run was planned with, or the file
            is no regular one.
        OSError: the file can't be read.
    """
    with open_regular(path) as handle:
        size = os.fstat(handle.fileno()).st_size
        if limit is not None and size > limit:
            raise InputError(f"{printable(path)}: {size:,} bytes, more than {limit:,}; take it out")
        content = handle.read()
    if _expected or _strict:
        _compare(path, hashlib.sha256(content).hexdigest())
    return content


def checked(path: Path) -> Path:
    """Return `path` when its contents, which may be large, are those of the plan.

    Raises:
        InputError, OSError: as `read_bytes`.
    """
    with open_regular(path) as handle:
        if _expected or _strict:
            _compare(path, hashlib.file_digest(handle, "sha256").hexdigest())
    return path


def _compare(path: Path, found: str) -> None:
    planned = _expected.get(os.path.abspath(path))  # noqa: PTH100 - links stay as they are named
    if planned is None and _strict:
        raise InputError(f"{path}: was not there when this run was planned; {_AGAIN}")
    if planned not in (None, found):
        raise InputError(f"{path}: changed since this run was planned; {_AGAIN}")
