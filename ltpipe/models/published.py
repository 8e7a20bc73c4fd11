"""Weights that others published: how their files are read, and whether they are a network's."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ltpipe.compat import import_open_clip
from ltpipe.utils.errors import InputError, nearest
from ltpipe.utils.outside import checked

# Under what names training scripts keep the weights beside the rest of a checkpoint.
_NESTED = ("state_dict", "model")


def read_published(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file or a saved state dict by their names.

    Raises:
        InputError: the file is missing, damaged, changed since the run was planned, or holds more
            than tensors.
    """
    if not path.is_file():
        raise InputError(f"weights file {path} does not exist")
    checked(path)
    try:
        if path.suffix == ".safetensors":
            state: Any = load_file(path)
        else:
            with warnings.catch_warnings(action="ignore"):
                state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # A damaged pickle raises nearly anything, also IndexError.
        if "TorchScript" in str(error):
            raise InputError(
                f"weights file {path} is a TorchScript archive, which can hold code and is not "
                "opened; where you trust it, save its tensors: "
                "torch.save(torch.jit.load(PATH, 'cpu').state_dict(), 'weights.pth')"
            ) from None
        raise InputError(
            f"weights file {path} is damaged or holds more than tensors: give a safetensors file "
            "or a saved state dict"
        ) from None
    for name in _NESTED:
        if isinstance(state, Mapping) and isinstance(state.get(name), Mapping):
            state = state[name]
    if (
        not isinstance(state, Mapping)
        or not state
        or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items())
    ):
        raise InputError(f"weights file {path} is not a plain state dict (name -> tensor)")
    return {name.removeprefix("module."): tensor for name, tensor in state.items()}


def load_published(network: nn.Module, state: Mapping[str, Tensor], origin: str) -> None:
    """Load weights into a network, in its own precision.

    Args:
        origin: names the weights in messages.

    Raises:
        InputError: a tensor is missing, unknown or of another shape.
    """
    expected = network.state_dict()
    missing = sorted(expected.keys() - state.keys())
    unknown = sorted(state.keys() - expected.keys())
    if missing or unknown:
        fault = f"{missing[0]} is missing" if missing else f"{unknown[0]} is unknown"
        raise InputError(f"{origin}: {fault}; these weights belong to another network")
    for key, value in expected.items():
        if state[key].shape != value.shape:
            raise InputError(
                f"{origin}: {key} has shape {tuple(state[key].shape)}, the network needs "
                f"{tuple(value.shape)}; these weights belong to another network"
            )
    network.load_state_dict({key: value.to(expected[key].dtype) for key, value in state.items()})


def clip_weights(model: str, tag: str, key: str) -> dict[str, Any]:
    """Return what open_clip knows of a model's published weights of this tag.

    Args:
        key: the setting that names them, for the message.

    Raises:
        InputError: it knows none.
    """
    pretrained = import_open_clip().pretrained
    found = pretrained.get_pretrained_cfg(model, tag)
    if not found:
        known = pretrained.list_pretrained_tags_by_model(model)
        raise InputError(
            f"{key}: open_clip has no weights {tag!r} of {model}{nearest(tag, known)}; known: "
            f"{', '.join(known) or 'none'}; a file is named by its path, with a / or its suffix"
        )
    return dict(found)
