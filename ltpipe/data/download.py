"""Published files from the network: checked, and there whole or not at all."""

from __future__ import annotations

import hashlib
import http.client
import shutil
import tarfile
import tempfile
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from ltpipe.utils.errors import InputError
from ltpipe.utils.io import atomic_path


@dataclass(frozen=True)
class Remote:
    """A published file: the data set's name, address and MD5, and what else to put where."""

    name: str
    url: str
    md5: str
    advice: str


def fetch_file(remote: Remote, path: Path) -> None:
    """Download a file to `path`.

    Raises:
        InputError: it can't be had or is another file; says what to put where.
    """
    try:
        with atomic_path(path) as temporary:
            _fetch(remote, temporary)
    except (OSError, http.client.HTTPException) as error:
        raise _missing(remote, path.parent, error) from error


def fetch_folder(remote: Remote, root: Path, folder: str) -> None:
    """Download a tar archive and unpack its folder called `folder` into `root`.

    Raises:
        InputError: it can't be had, is another file, or reaches outside its folder; says what to
            put where.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root) as scratch:
            archive = Path(scratch) / "archive"
            _fetch(remote, archive)
            _unpack(archive, Path(scratch))
            (Path(scratch) / folder).rename(root / folder)
    except (OSError, http.client.HTTPException, tarfile.TarError) as error:
        raise _missing(remote, root, error) from error


def _unpack(archive: Path, folder: Path) -> None:
    """Write the plain files of a tar archive below `folder`; anything else ends it with OSError."""
    inside = folder.resolve()
    with tarfile.open(archive) as tar:
        for member in tar:
            path = (inside / member.name).resolve()
            if member.isdir():
                continue
            content = tar.extractfile(member) if member.isreg() else None
            if content is None or not path.is_relative_to(inside):
                raise OSError(f"{member.name} is a link, a device or outside its folder")
            path.parent.mkdir(parents=True, exist_ok=True)
            with content, path.open("wb") as out:
                shutil.copyfileobj(content, out)


def _fetch(remote: Remote, path: Path) -> None:
    digest = hashlib.md5(usedforsecurity=False)
    with urllib.request.urlopen(remote.url, timeout=30) as answer, path.open("wb") as out:
        while block := answer.read(1 << 20):
            digest.update(block)
            out.write(block)
    if digest.hexdigest() != remote.md5:
        raise OSError(f"MD5 is {digest.hexdigest()}, not {remote.md5}")


def _missing(remote: Remote, root: Path, error: Exception) -> InputError:
    return InputError(
        f"{remote.name} is not under {root} and {remote.url} can't be had ({error}): "
        f"{remote.advice} (data.root or LTPIPE_DATA sets another folder)"
    )
