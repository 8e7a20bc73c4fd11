"""What a bundle is on disk: bundle.json, safetensors files, a card, and at will an ONNX graph.

bundle.json has the SHA-256 of every file that predictions depend on, and of its own content. The
card is for people: it may be edited.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ltpipe.config.base import canonical_json
from ltpipe.utils.errors import InputError
from ltpipe.utils.io import atomic_path, file_sha256, write_json_atomic

FORMAT = "ltpipe-bundle/1"
DESCRIPTION = "bundle.json"
CARD = "README.md"
METHOD = "method.safetensors"
GRAPH = "model.onnx"
_REQUIRED = ("method", "point", "classes", "input", "backbones", "filters", "files", "digest")


@contextmanager
def new_bundle(folder: Path, *, force: bool) -> Iterator[Path]:
    """Yield an empty folder beside `folder` that becomes it at the end; on an error nothing stays.

    Raises:
        InputError: `folder` exists without `force`, or is no bundle that could be replaced.
    """
    if folder.exists() or folder.is_symlink():
        if not force:
            raise InputError(f"{folder} exists; name another --output, or replace it by --force")
        if not (folder / DESCRIPTION).is_file():
            raise InputError(f"{folder} exists and is no bundle: --force replaces bundles alone")
    target = folder.resolve()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise InputError(f"{folder} can't be written: {error.strerror}") from None
    try:
        # What mkdtemp makes is closed to others.
        (temporary / "bundle").mkdir()
        yield temporary / "bundle"
        if target.exists():
            target.replace(temporary / "replaced")
        (temporary / "bundle").replace(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors as safetensors."""
    whole = {name: tensor.cpu().contiguous().clone() for name, tensor in tensors.items()}
    with atomic_path(path) as temporary:
        save_file(whole, temporary)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read what `save_tensors` wrote.

    Raises:
        InputError: the file is missing or damaged.
    """
    try:
        return load_file(path)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: damaged ({error}); make the artifact again") from None


def write_description(folder: Path, values: Mapping[str, Any]) -> None:
    """Write bundle.json over the files that lie in the folder."""
    files = {
        path.name: {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
        for path in sorted(folder.iterdir())
        if path.name not in (DESCRIPTION, CARD)
    }
    whole = {"format": FORMAT, **values, "files": files}
    write_json_atomic(folder / DESCRIPTION, {**whole, "digest": _digest(whole)})


def read_description(folder: Path) -> dict[str, Any]:
    """Return bundle.json, every file checked against it.

    Raises:
        InputError: there is no bundle, it is of another version, or a file is missing or changed.
    """
    path = folder / DESCRIPTION
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(
            f"{folder} is no bundle: it has no {DESCRIPTION}; `ltpipe export` makes one"
        ) from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not readable ({error}); export again") from None
    found = values.get("format") if isinstance(values, dict) else None
    if found != FORMAT:
        raise InputError(
            f"{path}: format {found!r}, this version of ltpipe reads {FORMAT!r}; export again, or "
            "use the version that wrote it"
        )
    missing = [key for key in _REQUIRED if key not in values]
    digest = values.pop("digest", None)
    if missing or digest != _digest(values):
        raise InputError(f"{path}: changed since it was exported; export again")
    for name, expected in values["files"].items():
        if Path(name).name != name:
            raise InputError(f"{path}: names the file {name!r}, which is not in its folder")
        if not (folder / name).is_file():
            raise InputError(f"{folder / name}: missing; copy the whole bundle, or export again")
        if file_sha256(folder / name) != expected["sha256"]:
            raise InputError(f"{folder / name}: changed since it was exported; export again")
    return {**values, "digest": digest}


def _digest(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical_json(values).encode()).hexdigest()
