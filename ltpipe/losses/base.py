"""What all losses share: their interface, and checked class counts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ltpipe.errors import InputError


class Loss(nn.Module):
    """A loss called as ``loss(logits (B, C), target (B,) int64) -> scalar``, the batch mean.

    Half-precision logits are raised to float32 before anything is computed. What a loss knows
    about the classes is kept in buffers outside the state dict: it follows ``.to(device)`` and is
    rebuilt from the counts, never loaded.
    """

    def on_epoch(self, epoch: int) -> None:
        """Announce the 0-based `epoch` before its first batch; most losses have nothing to do."""

    def logits(self, outputs: Tensor) -> Tensor:
        """Return what softmax should see at test time, given the network's outputs (B, C)."""
        return outputs


def at_least_float32(values: Tensor) -> Tensor:
    """Raise half precision to float32 and leave float32 and float64 as they are."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def checked_counts(class_counts: Sequence[int] | Tensor) -> Tensor:
    """Return the training images per class as float64 (C,).

    Raises:
        InputError: there is no class, or a class has no training image.
    """
    counts = torch.as_tensor(class_counts, dtype=torch.float64, device="cpu")
    if counts.ndim != 1 or not len(counts):
        raise InputError("class_counts must list one count per class, for at least one class")
    for index, count in enumerate(counts.tolist()):
        if not 0 < count < float("inf"):
            raise InputError(f"class {index} has {count:g} training images; it needs at least one")
    return counts
