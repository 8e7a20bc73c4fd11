"""Classifiers on features (B, D): a linear map, or the cosines to one direction per class."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ltpipe.utils.errors import InputError, nearest


class LinearHead(nn.Linear):
    """Logits (B, C) from a weight (C, D), Kaiming-normal at the start, and a bias (C,)."""

    def __init__(self, dim: int, classes: int) -> None:
        super().__init__(dim, classes)

    def reset_parameters(self) -> None:
        super().reset_parameters()
        nn.init.kaiming_normal_(self.weight)


class CosineHead(nn.Module):
    """Plain cosines (B, C) between features and the rows of a weight (C, D); no scale, no bias.

    The weight starts uniform in (-1, 1) with its rows brought to unit length. Computed in float32
    or better, also under autocast: a loss multiplies the cosines by up to 50. A zero feature has
    cosine 0 to every class.
    """

    def __init__(self, dim: int, classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(F.normalize(torch.empty(classes, dim).uniform_(-1, 1)))

    def forward(self, features: Tensor) -> Tensor:
        dtype = torch.promote_types(self.weight.dtype, torch.float32)
        with torch.autocast(features.device.type, enabled=False):
            return F.linear(F.normalize(features.to(dtype)), F.normalize(self.weight.to(dtype)))


_HEADS: dict[str, type[LinearHead] | type[CosineHead]] = {
    "linear": LinearHead,
    "cosine": CosineHead,
}


def build_head(kind: str, dim: int, classes: int) -> LinearHead | CosineHead:
    """Return a new head "linear" or "cosine" from `dim` features to `classes` outputs.

    Raises:
        InputError: there is no head of this name.
    """
    if kind not in _HEADS:
        known = ", ".join(_HEADS)
        raise InputError(f"unknown head {kind!r}{nearest(kind, _HEADS)}; known: {known}")
    return _HEADS[kind](dim, classes)
