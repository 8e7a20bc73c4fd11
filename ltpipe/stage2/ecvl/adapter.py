"""Adapters on image features, of all sweep points at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ltpipe.stage2.core.heads import random_linear
from ltpipe.utils.seeding import generator


@torch.no_grad()
def adapt(
    features: Tensor, weight: Tensor, bias: Tensor | None, share: Tensor, relu: bool
) -> Tensor:
    """Return features (N, D) as one adapter changes them, not of unit length."""
    hidden = features @ weight.T
    if bias is not None:
        hidden += bias
    if relu:
        hidden.relu_()
    return torch.lerp(features, hidden, share)


class Adapted(NamedTuple):
    """Features (P, B, D), what the adapter's layer made of them, and the result of unit length."""

    features: Tensor
    hidden: Tensor
    units: Tensor
    norms: Tensor


class Adapter:
    """``lambda ReLU(W f + b) + (1 - lambda) f`` for P models (eq. 7 without its loss factor).

    Its gradients are by hand: the benchmark's table has what autograd would cost.

    Args:
        dimension: D, of the features.
        shares: lambda of each model.
    """

    def __init__(
        self,
        dimension: int,
        shares: Sequence[float],
        seed: int,
        device: torch.device,
        *,
        relu: bool = True,
        bias: bool = True,
    ) -> None:
        weight, offset = random_linear(dimension, dimension, generator(seed, "adapter"))
        self.weight = weight.expand(len(shares), -1, -1).to(device, copy=True).requires_grad_()
        self.bias: Tensor | None = None
        if bias:
            self.bias = offset.expand(len(shares), -1).to(device, copy=True).requires_grad_()
        self.relu = relu
        self.share = torch.tensor(shares, device=device).view(-1, 1, 1)

    @torch.no_grad()
    def units(self, features: Tensor) -> Adapted:
        """Return adapted features of unit length from features (P, B, D)."""
        hidden = torch.bmm(features, self.weight.transpose(1, 2))
        if self.bias is not None:
            hidden += self.bias.unsqueeze(1)
        if self.relu:
            hidden.relu_()
        adapted = torch.lerp(features, hidden, self.share)
        norms = torch.linalg.vector_norm(adapted, dim=-1, keepdim=True).clamp_min_(1e-12)
        return Adapted(features, hidden, adapted.div_(norms), norms)

    @torch.no_grad()
    def backward(self, adapted: Adapted, by_units: Tensor) -> None:
        """Leave the gradients of what has the gradient `by_units` (P, B, D) by the unit vectors."""
        units = adapted.units
        radial = torch.linalg.vecdot(by_units, units).unsqueeze(-1)
        by_hidden = torch.addcmul(by_units, radial, units, value=-1).div_(adapted.norms)
        by_hidden.mul_(self.share)
        if self.relu:
            by_hidden.mul_(adapted.hidden.sign())
        self.weight.grad = torch.bmm(by_hidden.transpose(1, 2), adapted.features)
        if self.bias is not None:
            self.bias.grad = by_hidden.sum(1)

    def weights(self) -> dict[str, Tensor]:
        """Return what is trained, the points along the first axis."""
        weights = {"weight": self.weight, "bias": self.bias, "share": self.share.view(-1)}
        return {name: value.detach() for name, value in weights.items() if value is not None}
