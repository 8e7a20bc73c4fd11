"""Checkpoints from which a killed run goes on and ends as if it had not been killed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ltpipe.utils.io import atomic_path


class Checkpoint:
    """One file of tensors in `folder`, replaced whole every `every` epochs.

    `identity` says what run the checkpoint belongs to (spec and code). A checkpoint of another
    run, or a damaged one, is not used.
    """

    def __init__(self, folder: Path, identity: str, every: int = 5) -> None:
        self.folder = folder
        self.path = folder / "checkpoint.safetensors"
        self.identity = identity
        self.every = every

    def due(self, epochs_done: int) -> bool:
        """Return whether a checkpoint is to be written after this many epochs."""
        return epochs_done % self.every == 0

    def save(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Write `tensors` and the JSON-able `state`."""
        metadata = {"identity": self.identity, "state": json.dumps(state)}
        with atomic_path(self.path) as temporary:
            save_file(
                {name: tensor.detach().contiguous() for name, tensor in tensors.items()},
                temporary,
                metadata,
            )

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Return tensors and state, or None where there is nothing to go on from."""
        if not self.path.is_file():
            return None
        try:
            with safe_open(self.path, framework="pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("identity") != self.identity:
                    return None
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                return tensors, json.loads(metadata["state"])
        except (SafetensorError, KeyError, json.JSONDecodeError):
            return None

    def clear(self) -> None:
        """Remove the folder: the run is finished."""
        shutil.rmtree(self.folder, ignore_errors=True)


def copy_into(target: Tensor, source: Tensor) -> None:
    """Copy values in place, keeping the target's memory format and device."""
    with torch.no_grad():
        target.copy_(source)
