"""The masked network of an autoregressive flow, its masks laid on the weights once.

Germain et al., "MADE: Masked Autoencoder for Distribution Estimation", ICML 2015.
"""

from __future__ import annotations

from typing import Any

import torch
from nflows.transforms.made import MADE
from torch import Tensor, nn
from torch.nn import functional as F


class MaskedNetwork(nn.Module):
    """Shift and log-scale of each dimension from the dimensions before it.

    The layers are those of nflows's MADE: masked linear maps D -> hidden -> hidden -> 2 D with a
    ReLU after the first two, hidden unit h seeing the first ``h mod (D - 1) + 1`` dimensions;
    outputs 2 d and 2 d + 1 are shift and log-scale of dimension d. Where nflows multiplies weights
    by their masks in every pass, here masked weights are zero from the start and stay so because
    their gradients are masked, which leaves less to do than the products themselves.
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        made = MADE(
            dim,
            hidden,
            num_blocks=1,
            output_multiplier=2,
            use_residual_blocks=False,
            random_mask=False,
        )
        parts = [made.initial_layer, made.blocks[0].linear, made.final_layer]
        self.layers = nn.ModuleList(MaskedLinear(part) for part in parts)
        self.dtype = torch.float32

    def compute_in(self, dtype: torch.dtype) -> None:
        """Let products run in `dtype`; parameters keep theirs."""
        self.dtype = dtype
        for layer in self.layers:
            layer.mask = layer.mask.to(dtype)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return shifts and log-scales, (B, D) each in the type of x (B, D)."""
        first, second, third = self.layers
        inputs = x if self.dtype is torch.float32 else x.to(self.dtype)
        outputs = third(F.relu(second(F.relu(first(inputs)))))
        shift, log_scale = outputs.to(x.dtype).view(*x.shape, 2).unbind(-1)
        return shift, log_scale


class MaskedLinear(nn.Module):
    """The linear map of one of nflows's masked layers, in the type of its inputs."""

    mask: Tensor

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(layer.weight.detach() * layer.mask)
        self.bias = nn.Parameter(layer.bias.detach())
        # It follows from the sizes: no file needs it.
        self.register_buffer("mask", layer.mask, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, inputs) to (B, outputs)."""
        weight = _Masked.apply(self.weight, self.mask, x.dtype)
        return F.linear(x, weight, self.bias.to(x.dtype))


class _Masked(torch.autograd.Function):
    """A weight that is masked already, in another type; its gradient is masked."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, mask: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.save_for_backward(mask)
        ctx.dtype = weight.dtype
        return weight.view_as(weight) if weight.dtype == dtype else weight.to(dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None, None]:
        (mask,) = ctx.saved_tensors
        return (gradients[0] * mask).to(ctx.dtype), None, None
