"""Checkpoints from which a killed run goes on and ends as if it had not been killed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ltpipe.utils.errors import InputError
from ltpipe.utils.io import atomic_path
from ltpipe.utils.progress import say

Found = tuple[dict[str, Tensor], dict[str, Any]]


class Checkpoint:
    """A file of tensors in `folder`, replaced every `every` epochs; the one before it is kept.

    `identity` says what run a checkpoint belongs to (spec and code): one of another run is not
    used. Each carries the SHA-256 of its tensors and state, and a damaged one is set aside.
    """

    def __init__(self, folder: Path, identity: str, every: int = 5) -> None:
        self.folder = folder
        self.path = folder / "checkpoint.safetensors"
        self.before = folder / "before.safetensors"
        self.identity = identity
        self.every = every

    def due(self, epochs_done: int) -> bool:
        """Return whether a checkpoint is to be written after this many epochs."""
        return epochs_done % self.every == 0

    def save(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Write `tensors` and the JSON-able `state`."""
        whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        text = json.dumps(state)
        metadata = {"identity": self.identity, "state": text, "sha256": _sha256(whole, text)}
        with atomic_path(self.path) as temporary:
            save_file(whole, temporary, metadata)
            # A process that is killed here goes on from the one before.
            with contextlib.suppress(FileNotFoundError):
                self.path.replace(self.before)

    def load(self) -> Found | None:
        """Return tensors and state, or None where there is nothing to go on from.

        A damaged checkpoint is set aside, in words, and the one before it is taken.
        """
        for path in (self.path, self.before):
            try:
                found = self._read(path)
            except InputError as error:
                with contextlib.suppress(FileNotFoundError):
                    path.replace(path.with_suffix(".damaged"))
                say(f"{error}; set aside, going on from the one before it or the beginning")
            else:
                if found is not None:
                    return found
        return None

    def _read(self, path: Path) -> Found | None:
        if not path.is_file():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("identity", self.identity) != self.identity:
                    return None
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            # Version 0.1.0 left none.
            if metadata.get("sha256") in (None, _sha256(tensors, metadata["state"])):
                return tensors, json.loads(metadata["state"])
        except (SafetensorError, KeyError, ValueError, OSError):
            pass
        raise InputError(f"{path}: a damaged checkpoint")

    def clear(self) -> None:
        """Remove the folder: the run is finished."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _sha256(tensors: Mapping[str, Tensor], state: str) -> str:
    digest = hashlib.sha256(state.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"\0{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def copy_into(target: Tensor, source: Tensor) -> None:
    """Copy values in place, keeping the target's memory format and device."""
    with torch.no_grad():
        target.copy_(source)
