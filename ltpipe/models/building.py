"""Build a backbone from its settings, and save and load its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from ltpipe.config.backbones import BackboneSettings
from ltpipe.config.registry import load
from ltpipe.utils.errors import InputError
from ltpipe.utils.io import atomic_path


def build_network(settings: BackboneSettings, classes: int, channels: int) -> Any:
    """Return the network of `settings` with fresh weights from torch's global stream.

    It maps images (B, channels, H, W) to logits (B, classes), has `.features(x)` -> (B, D) and
    `.head`.
    """
    options: dict[str, Any] = {"head": settings.head, "in_channels": channels}
    if settings.attention is not None:
        options["attention"] = settings.attention
    if settings.weights is not None:
        options["weights"] = settings.weights
    network = load("network", settings.network)(classes, **options)
    if settings.trained == "last-stage":
        network.freeze_early_stages()
    return network


def place(network: Any, device: torch.device, dtype: torch.dtype | None = None) -> Any:
    """Move a network to a device, and to a type, in channels-last memory; return it."""
    return network.to(device=device, dtype=dtype, memory_format=torch.channels_last)


def save_weights(network: nn.Module, path: Path) -> None:
    """Write the network's state as safetensors, whole or not at all."""
    state = {
        name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()
    }
    with atomic_path(path) as temporary:
        save_file(state, temporary)


def load_weights(network: nn.Module, path: Path) -> None:
    """Load what `save_weights` wrote.

    Raises:
        InputError: the file is missing, damaged, or of another network.
    """
    try:
        network.load_state_dict(load_file(path))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; train the backbone first") from None
    except SafetensorError:
        raise InputError(f"{path}: damaged; delete it and run again") from None
    except RuntimeError:
        raise InputError(
            f"{path}: these weights belong to another network; delete the folder and run again"
        ) from None
