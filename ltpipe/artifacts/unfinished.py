"""Trainings that were interrupted: whose they are, as the header of their checkpoint says.

A checkpoint is a file of safetensors (8 bytes of length, a header of JSON, then the tensors), so
it can be read and bound to another run without torch.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ltpipe.plan.stages import RESUME
from ltpipe.utils.errors import InputError
from ltpipe.utils.io import atomic_path

# As ltpipe.training.checkpoint names it.
_FILE = "checkpoint.safetensors"
_LONGEST_HEADER = 100_000_000


@dataclass(frozen=True)
class Unfinished:
    """A checkpoint: the run that it belongs to, and the epochs that are done."""

    path: Path
    spec: dict[str, Any]
    draw: str
    processes: int
    code: str
    epochs: int
    seconds: float


def checkpoint_in(folder: Path) -> Path:
    """Return where an artifact's job leaves its checkpoint."""
    return folder / RESUME / _FILE


def read_unfinished(folder: Path) -> Unfinished | None:
    """Return the checkpoint in an artifact's folder; None where there is none, or it is damaged."""
    path = checkpoint_in(folder)
    try:
        with open(path, "rb") as file:
            metadata = _header(file)["__metadata__"]
        identity = json.loads(metadata["identity"])
        history = json.loads(metadata["state"])["history"]
        spec = identity["spec"]
        return Unfinished(
            path,
            spec,
            str(identity["draw"]),
            int(identity.get("processes", 1)),
            # Version 0.1.0 had it beside the spec.
            str(spec.get("code", identity.get("code", ""))),
            len(history),
            sum(float(record["seconds"]) for record in history),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def bind(checkpoint: Path, to: Path, identity: str) -> None:
    """Write a copy of a checkpoint that belongs to another run.

    Raises:
        InputError: it is damaged.
    """
    try:
        with open(checkpoint, "rb") as file:
            header = _header(file)
            header["__metadata__"]["identity"] = identity
            text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
            # Tensors start at a multiple of eight bytes.
            text += b" " * (-len(text) % 8)
            with atomic_path(to) as temporary, open(temporary, "wb") as copy:
                copy.write(len(text).to_bytes(8, "little") + text)
                shutil.copyfileobj(file, copy, 1 << 20)
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{checkpoint}: damaged; delete it") from None


def _header(file: BinaryIO) -> dict[str, Any]:
    """Return the header of a file of safetensors, of which the tensors are read next."""
    length = int.from_bytes(file.read(8), "little")
    if length > _LONGEST_HEADER:
        raise ValueError
    header: dict[str, Any] = json.loads(file.read(length))
    return header
