"""What adapters are trained by, with gradients by hand: contrast of views, and class texts."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def instance_contrast(views: Tensor, index: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Return each sample's contrastive loss (..., B) and the gradient of its mean, by hand.

    A view's positive is the sample's other view, its negatives are both views of the batch's other
    images; a sample's loss is the mean over its two views. The same image drawn twice is no
    negative of itself. The gradient (..., 2 B, D) is that of the mean loss by the views.

    ECVL, eq. 11; Chen et al., "A Simple Framework for Contrastive Learning of Visual
    Representations", ICML 2020, eq. 1.

    Args:
        views: unit vectors (..., 2 B, D): all first views, then all second ones.
        index: (..., B) int64, which image each sample is.
    """
    batch = index.shape[-1]
    same = index.unsqueeze(-1) == index.unsqueeze(-2)
    row = torch.cat([torch.where(same, -torch.inf, 0.0).to(views)] * 2, dim=-1)
    barred = torch.cat([row, row], dim=-2)
    for offset in (batch, -batch):
        torch.diagonal(barred, offset, -2, -1).zero_()
    logits = torch.add(barred, views @ views.transpose(-1, -2), alpha=1 / temperature)
    shares = torch.log_softmax(logits, dim=-1)
    losses = torch.diagonal(shares, batch, -2, -1) + torch.diagonal(shares, -batch, -2, -1)
    # By a logit: its softmax, less one for the positive.
    shares.exp_()
    for offset in (batch, -batch):
        torch.diagonal(shares, offset, -2, -1).sub_(1)
    gradient = (shares + shares.transpose(-1, -2)) @ views
    return losses.div_(-2), gradient.div_(2 * batch * temperature)


@torch.no_grad()
def text_gradient(units: Tensor, text: Tensor, target: Tensor, scale: float) -> Tensor:
    """Return the gradient (P, B, D) of each model's mean cross-entropy over the prompts (eq. 6).

    Args:
        units: adapted features of unit length (P, B, D).
        text: the classes' texts (C, D).
        target: (P, B) int64.
    """
    shares = torch.softmax(units @ (scale * text).T, dim=-1)
    return (shares @ text).sub_(text[target]).mul_(scale / target.shape[1])
