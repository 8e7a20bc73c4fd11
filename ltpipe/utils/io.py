"""Files that are either whole or absent."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any

from ltpipe.utils.errors import DiskError, InputError

_SUFFIX = ".tmp"
_NUMBER = re.compile(r"(?:errno = |os error )(\d+)")
_SPACE = "free some space and run again; what is finished stays"
_RIGHTS = "make it writable, or work in another folder"
_REFUSALS = {
    errno.ENOSPC: _SPACE,
    errno.EDQUOT: _SPACE,
    errno.EFBIG: "the limit on file sizes (ulimit -f) is too low",
    errno.EROFS: _RIGHTS,
    errno.EACCES: _RIGHTS,
    errno.EPERM: _RIGHTS,
    errno.EIO: "the disk is failing; check it, and run again elsewhere",
    errno.ESTALE: "the network disk went away; run again",
}


@contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success sync it and rename it into place.

    On any exception the temporary file is removed and `path` stays as it was, so a reader sees
    the old file, the new one or none, and never a part.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=_SUFFIX, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())
        _sync(temporary)
        temporary.replace(path)
        _sync(path.parent)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        reason = refusal(error)
        if reason is not None:
            raise DiskError(f"{path}: can't be written: {reason}") from error
        raise


def refusal(error: BaseException) -> str | None:
    """Return in words why the system refused to read or write, and what to do; None if it did not.

    HDF5 and safetensors hide the system's error number in their messages.
    """
    number = error.errno if isinstance(error, OSError) else None
    if number is None:
        found = _NUMBER.search(str(error))
        number = int(found.group(1)) if found else None
    advice = _REFUSALS.get(number or 0)
    return None if advice is None else f"{os.strerror(number or 0).lower()}; {advice}"


def is_temporary(path: Path) -> bool:
    """Return whether `path` is one that `atomic_path` yields: half-written if nobody writes it."""
    return path.name.startswith(".") and path.suffix == _SUFFIX


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text_atomic(path: Path | str, text: str) -> None:
    """Write `text` as UTF-8 to `path`, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json_atomic(path: Path | str, value: Any) -> None:
    """Write `value` as indented JSON with sorted keys to `path`, whole or not at all."""
    write_text_atomic(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def file_sha256(path: Path | str) -> str:
    """Return the SHA-256 of a file's bytes as hex digits; see `open_regular`."""
    with open_regular(path) as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


@contextmanager
def open_regular(path: Path | str) -> Iterator[BufferedReader]:
    """Open a regular file to read its bytes.

    Raises:
        InputError: it is something else, such as a pipe, which would be waited for.
        OSError: it can't be opened.
    """
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as handle:
        if not stat.S_ISREG(os.fstat(handle.fileno()).st_mode):
            raise InputError(f"{printable(path)}: not a regular file; remove it, or name another")
        yield handle


def printable(path: str | Path) -> str:
    """Return a file's name for a message of one line, whatever bytes are in it."""
    text = os.fspath(path)
    if text.isprintable():
        return text
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in text
    )
