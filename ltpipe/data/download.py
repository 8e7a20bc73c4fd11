"""Published files from the network: checked, and there whole or not at all."""

from __future__ import annotations

import hashlib
import http.client
import tarfile
import tempfile
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from ltpipe.errors import InputError
from ltpipe.io import atomic_path


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
            with tarfile.open(archive) as tar:
                tar.extractall(scratch, filter="data")
            (Path(scratch) / folder).rename(root / folder)
    except (OSError, http.client.HTTPException, tarfile.TarError) as error:
        raise _missing(remote, root, error) from error


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
