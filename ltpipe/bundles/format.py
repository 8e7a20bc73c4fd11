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
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ltpipe.config.base import canonical_json, explain
from ltpipe.utils.errors import InputError
from ltpipe.utils.io import atomic_path, file_sha256, open_regular, write_json_atomic

FORMAT = "ltpipe-bundle/1"
DESCRIPTION = "bundle.json"
CARD = "README.md"
METHOD = "method.safetensors"
GRAPH = "model.onnx"
# Of a bundle with 100,000 long class names.
_MAX_BYTES = 100_000_000


class _Part(BaseModel):
    """A part of bundle.json: strict in what it holds, and open to what later versions add."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)


class _Method(_Part):
    kind: str


class _Point(_Part):
    parameters: dict[str, float]


class _Classes(_Part):
    names: list[str] = Field(min_length=1)
    counts: list[Annotated[int, Field(ge=0)]]

    @model_validator(mode="after")
    def _fit(self) -> _Classes:
        if len(self.names) != len(self.counts):
            raise ValueError("there must be a count for each name")
        return self


_Size = Annotated[list[Annotated[int, Field(ge=1, le=65_536)]], Field(min_length=2, max_length=2)]
_PerChannel = Annotated[list[float], Field(min_length=1, max_length=3)]


class _Input(_Part):
    size: _Size
    stored: _Size
    channels: Literal[1, 3]
    interpolation: Literal["bilinear", "bicubic"]
    fit: Literal["cover", "stretch", "pad"]
    mean: _PerChannel
    std: _PerChannel


class _Features(_Part):
    """What a backbone gives, where it is not in the bundle."""

    dimension: int = Field(ge=1)
    attributes: dict[str, Any]


class _Backbone(_Features):
    settings: dict[str, Any]
    file: str
    outputs: int = Field(ge=1)
    precision: Literal["fp32", "bf16"]
    batch_size: int = Field(ge=1)


class _File(_Part):
    bytes: int = Field(ge=0)
    sha256: str


class _Description(_Part):
    method: _Method
    point: _Point
    facts: dict[str, Any]
    classes: _Classes
    input: _Input | None
    backbones: dict[str, dict[str, Any]] = Field(min_length=1)
    filters: list[float]
    onnx: dict[str, Any] | None
    files: dict[str, _File]

    @model_validator(mode="after")
    def _whole(self) -> _Description:
        named = [METHOD, *([] if self.onnx is None else [GRAPH])]
        for role, values in self.backbones.items():
            try:
                if self.input is None:
                    _Features.model_validate(values)
                    if values.get("settings") is not None:
                        raise ValueError("input: must say how images reach its backbones")
                else:
                    named.append(_Backbone.model_validate(values).file)
            except ValidationError as error:
                raise ValueError(str(explain(error, f"backbones.{role}"))) from None
        for name in named:
            if name not in self.files:
                raise ValueError(f"names the file {name[:60]!r}, of which it gives no hash")
        for name in self.files:
            if name in (".", "..") or Path(name).name != name:
                raise ValueError(f"names the file {name[:60]!r}, which is not in its folder")
        return self


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
        with open_regular(path) as handle:
            data = handle.read(_MAX_BYTES + 1)
        if len(data) > _MAX_BYTES:
            raise ValueError(f"longer than {_MAX_BYTES:,} bytes")
        values = json.loads(data.decode("utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(
            f"{folder} is no bundle: it has no {DESCRIPTION}; `ltpipe export` makes one"
        ) from None
    except InputError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: not readable ({error}); export again") from None
    found = values.get("format") if isinstance(values, dict) else None
    if found != FORMAT:
        raise InputError(
            f"{path}: format {str(found)[:60]!r}, this version of ltpipe reads {FORMAT!r}; export "
            "again, or use the version that wrote it"
        )
    digest = values.pop("digest", None)
    try:
        is_as_written = digest == _digest(values)
    except (ValueError, RecursionError):
        is_as_written = False
    if not is_as_written:
        raise InputError(f"{path}: changed since it was exported; export again")
    try:
        _Description.model_validate(values)
    except ValidationError as error:
        raise InputError(f"{path}: {explain(error, '')}; export again") from None
    for name, expected in values["files"].items():
        if not (folder / name).is_file():
            raise InputError(f"{folder / name}: missing; copy the whole bundle, or export again")
        if file_sha256(folder / name) != expected["sha256"]:
            raise InputError(f"{folder / name}: changed since it was exported; export again")
    return {**values, "digest": digest}


def _digest(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical_json(values).encode()).hexdigest()
