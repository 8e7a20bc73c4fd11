"""Losses that bring images and the texts of their classes together."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ltpipe.losses.base import at_least_float32


def retrieval_loss(
    images: Tensor,
    texts: Tensor,
    target: Tensor,
    scale: Tensor | float,
    *,
    in_batch: bool = False,
    both: bool = False,
) -> Tensor:
    """Return the mean loss of finding an image's text, or that and of finding a text's image.

    An image meets the texts of all C classes: cross-entropy. With `in_batch` it meets those of its
    batch, and all pairs of its class are right: minus the mean of their log-softmax. `both`
    averages with the other direction, in which a text meets the batch's images, those of its class
    being right; of all C texts those count that the batch has images of.

    ECVL, eqs. 4 and 5; BALLAD (Ma et al., 2021), whose code compares with all classes.

    Args:
        images: unit vectors (B, D).
        texts: unit vectors (C, D).
        target: (B,) int64.
        scale: multiplies cosines.
    """
    logits = scale * at_least_float32(images) @ at_least_float32(texts).T
    if in_batch:
        pairs = logits.index_select(1, target)
        right = (target.unsqueeze(1) == target).to(pairs.dtype)
        found = _multi_positive(pairs, right)
        other = _multi_positive(pairs.T, right) if both else None
    else:
        found = F.cross_entropy(logits, target)
        classes = torch.arange(len(texts), device=target.device)
        right = (classes.unsqueeze(1) == target).to(logits.dtype)
        other = _multi_positive(logits.T, right) if both else None
    return found if other is None else (found + other) / 2


def _multi_positive(logits: Tensor, right: Tensor) -> Tensor:
    """Return minus the mean log-softmax of each row's right columns, over rows that have one."""
    numbers = right.sum(1)
    sums = (right * torch.log_softmax(logits, dim=1)).sum(1)
    rows = -sums / numbers.clamp_min(1)
    return rows.sum() / (numbers > 0).sum()
