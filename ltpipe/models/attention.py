"""Attention modules for residual blocks: each maps (B, C, H, W) to the same shape."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ltpipe.utils.errors import InputError, nearest

_REDUCTION = 16


class SimAM(nn.Module):
    """Parameter-free attention: a neuron counts more the further it is from its channel's mean.

    Yang et al., "SimAM: A Simple, Parameter-Free Attention Module", ICML 2021, eqs. 5 and 6.
    """

    def __init__(self, epsilon: float = 1e-4) -> None:
        super().__init__()
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        values = x.to(torch.promote_types(x.dtype, torch.float32))
        squares = (values - values.mean(dim=(2, 3), keepdim=True)) ** 2
        # A 1x1 map has no variance: its gate is the constant sigmoid(0.5).
        freedom = max(x.shape[2] * x.shape[3] - 1, 1)
        variance = squares.sum(dim=(2, 3), keepdim=True) / freedom
        gate = torch.sigmoid(squares / (4 * (variance + self.epsilon)) + 0.5)
        return x * gate.to(x.dtype)


class SqueezeExcitation(nn.Module):
    """One gate per channel from all channel means through a bottleneck of C/16 units, no biases.

    Hu et al., "Squeeze-and-Excitation Networks", CVPR 2018, eqs. 2 to 4.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.squeeze = nn.Linear(channels, channels // _REDUCTION, bias=False)
        self.excite = nn.Linear(channels // _REDUCTION, channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.sigmoid(self.excite(F.relu(self.squeeze(x.mean(dim=(2, 3))))))
        return x * gate[:, :, None, None]


class CBAM(nn.Module):
    """A gate per channel from its mean and maximum, then one per place over the channels'.

    Woo et al., "CBAM: Convolutional Block Attention Module", ECCV 2018, eqs. 2 and 3.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.squeeze = nn.Linear(channels, channels // _REDUCTION)
        self.excite = nn.Linear(channels // _REDUCTION, channels)
        self.spatial = nn.Conv2d(2, 1, kernel_size=7, padding=3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        mean, peak = x.mean(dim=(2, 3)), x.amax(dim=(2, 3))
        x = x * torch.sigmoid(self._shared(mean) + self._shared(peak))[:, :, None, None]
        maps = torch.cat([x.mean(dim=1, keepdim=True), x.amax(dim=1, keepdim=True)], dim=1)
        return x * torch.sigmoid(self.spatial(maps))

    def _shared(self, pooled: Tensor) -> Tensor:
        return self.excite(F.relu(self.squeeze(pooled)))


class ECA(nn.Module):
    """One gate per channel from the means of the channel and its two neighbours.

    Wang et al., "ECA-Net: Efficient Channel Attention", CVPR 2020, eq. 7 with k = 3.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 1, kernel_size=3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.sigmoid(self.conv(x.mean(dim=(2, 3)).unsqueeze(1)).squeeze(1))
        return x * gate[:, :, None, None]


def build_attention(kind: str, channels: int) -> nn.Module:
    """Return a new attention module "simam", "se", "cbam" or "eca" for maps of `channels`.

    Raises:
        InputError: there is no attention module of this name.
    """
    if kind == "simam":
        return SimAM()
    learned = {"se": SqueezeExcitation, "cbam": CBAM, "eca": ECA}
    if kind not in learned:
        known = ["simam", *learned]
        raise InputError(
            f"unknown attention {kind!r}{nearest(kind, known)}; known: {', '.join(known)}"
        )
    return learned[kind](channels)
