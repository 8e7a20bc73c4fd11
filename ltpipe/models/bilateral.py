"""Networks with two branches on a shared trunk, as BBN trains them."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from ltpipe.config.registry import network
from ltpipe.models.heads import LinearHead
from ltpipe.models.resnet import resnet8, resnet32
from ltpipe.models.torchvision_resnet import resnet50
from ltpipe.utils.errors import InputError


class BilateralNetwork(nn.Module):
    """A network whose last residual block exists twice; features are both branches', (B, 2 D).

    Zhou et al., CVPR 2020, section 4.2 and fig. 3.

    Args:
        base: a network with `trunk_and_last`, whose classifier is not used.
    """

    def __init__(self, base: Any, num_classes: int) -> None:
        super().__init__()
        self.trunk, self.conventional = base.trunk_and_last()
        self.rebalancing = copy.deepcopy(self.conventional)
        for module in self.rebalancing.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
        self.feature_dim: int = 2 * base.feature_dim
        self.head = LinearHead(self.feature_dim, num_classes)

    def features(self, x: Tensor) -> Tensor:
        """Return both branches' pooled maps of the same images, (B, 2 D)."""
        shared = self.trunk(x)
        return torch.cat([_pool(self.conventional(shared)), _pool(self.rebalancing(shared))], dim=1)

    def forward(self, x: Tensor, reverse: Tensor | None = None, share: float = 0.5) -> Tensor:
        """Return logits (B, num_classes).

        Of images alone they are those of testing, both branches weighing the same. In training
        the second branch sees the images `reverse`, and `share` is the first one's weight.
        """
        if reverse is None:
            return self.head(self.features(x))
        uniform = _pool(self.conventional(self.trunk(x)))
        rare = _pool(self.rebalancing(self.trunk(reverse)))
        return self.head(torch.cat([2 * share * uniform, 2 * (1 - share) * rare], dim=1))


def _pool(maps: Tensor) -> Tensor:
    return maps.mean(dim=(2, 3))


def _linear(head: str) -> None:
    if head != "linear":
        raise InputError(f"a network of two branches has a linear head, not {head!r}")


@network("bbn-resnet8", paper="Zhou et al., CVPR 2020")
def bbn_resnet8(num_classes: int, head: str = "linear", in_channels: int = 3) -> BilateralNetwork:
    """Return an 8-layer network with two branches; see `bbn_resnet32`."""
    _linear(head)
    return BilateralNetwork(resnet8(num_classes, in_channels=in_channels), num_classes)


@network("bbn-resnet32", paper="Zhou et al., CVPR 2020")
def bbn_resnet32(num_classes: int, head: str = "linear", in_channels: int = 3) -> BilateralNetwork:
    """Return BBN's CIFAR network: ResNet-32 with two last blocks, 128 features.

    Raises:
        InputError: `head` is not linear.
    """
    _linear(head)
    return BilateralNetwork(resnet32(num_classes, in_channels=in_channels), num_classes)


@network("bbn-resnet50", paper="Zhou et al., CVPR 2020")
def bbn_resnet50(num_classes: int, head: str = "linear", in_channels: int = 3) -> BilateralNetwork:
    """Return a ResNet-50 with two last blocks, 4,096 features; see `bbn_resnet32`."""
    _linear(head)
    return BilateralNetwork(resnet50(num_classes, in_channels=in_channels), num_classes)
