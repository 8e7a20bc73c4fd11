"""Contrast of images with themselves: two views of an image against those of others."""

from __future__ import annotations

import torch
from torch import Tensor

from ltpipe.losses.base import at_least_float32


def instance_contrast(first: Tensor, second: Tensor, index: Tensor, temperature: float) -> Tensor:
    """Return each sample's contrastive loss (..., B), the mean over its two views.

    A view's positive is the sample's other view, its negatives are both views of the batch's other
    images. The same image drawn twice is no negative of itself.

    ECVL, eq. 11; Chen et al., "A Simple Framework for Contrastive Learning of Visual
    Representations", ICML 2020, eq. 1.

    Args:
        first, second: unit vectors (..., B, D) of the two views.
        index: (..., B) int64, which image each sample is.
    """
    views = at_least_float32(torch.cat([first, second], dim=-2))
    similarity = views @ views.transpose(-1, -2) / temperature
    images = torch.cat([index, index], dim=-1)
    batch = index.shape[-1]
    place = torch.arange(2 * batch, device=index.device)
    positive = place.unsqueeze(1) == (place + batch) % (2 * batch)
    same = images.unsqueeze(-1) == images.unsqueeze(-2)
    logits = similarity.masked_fill(same & ~positive, -torch.inf)
    losses = torch.logsumexp(logits, dim=-1) - torch.cat(
        2 * [torch.linalg.vecdot(first, second) / temperature], dim=-1
    )
    return (losses[..., :batch] + losses[..., batch:]) / 2
