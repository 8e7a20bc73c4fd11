"""ResNets for small images, as in He et al., CVPR 2016, section 4.2, with parameter-free shortcuts.

The form that the long-tail literature trains on CIFAR: 16, 32 and 64 channels, shortcuts that
drop every other place and pad channels with zeros, 64 features.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from ltpipe.config.registry import network
from ltpipe.models.attention import SimAM, build_attention
from ltpipe.models.heads import build_head

_WIDTHS = (16, 32, 64)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut, with an optional attention module.

    SimAM stands between the second convolution and its BatchNorm, as in its authors' networks;
    the others stand between that BatchNorm and the sum.
    """

    def __init__(self, width_in: int, width: int, stride: int, attention: str | None) -> None:
        super().__init__()
        self.stride = stride
        self.padding = (width - width_in) // 2
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.attention = nn.Identity() if attention is None else build_attention(attention, width)

    def forward(self, x: Tensor) -> Tensor:
        # In place where no gradient needs what was there: a pass writes fewer maps.
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = self.conv2(y)
        if isinstance(self.attention, SimAM):
            y = self.bn2(self.attention(y))
        else:
            y = self.attention(self.bn2(y))
        y += self.shortcut(x)
        return F.relu(y, inplace=True)

    def shortcut(self, x: Tensor) -> Tensor:
        """Option A: every `stride`-th place, zero channels on both sides up to the new width."""
        if self.stride > 1:
            # One operator, and one backwards; a mean of one is itself.
            x = F.avg_pool2d(x, 1, self.stride)
        return F.pad(x, (0, 0, 0, 0, self.padding, self.padding)) if self.padding else x


class ResNet(nn.Module):
    """A ResNet of ``6 n + 2`` layers for images (B, in_channels, H, W) of 8x8 pixels or more."""

    feature_dim = _WIDTHS[-1]

    def __init__(
        self, depth: int, num_classes: int, head: str, attention: str | None, in_channels: int
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, _WIDTHS[0], 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(_WIDTHS[0])
        blocks: list[nn.Module] = []
        width_in = _WIDTHS[0]
        for width in _WIDTHS:
            for _ in range((depth - 2) // 6):
                blocks.append(BasicBlock(width_in, width, width // width_in, attention))
                width_in = width
        self.blocks = nn.Sequential(*blocks)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)
        self.head = build_head(head, self.feature_dim, num_classes)

    def features(self, x: Tensor) -> Tensor:
        """Return the globally pooled last map, (B, 64)."""
        return self.blocks(F.relu(self.bn(self.conv(x)), inplace=True)).mean(dim=(2, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Return the head's outputs, (B, num_classes)."""
        return self.head(self.features(x))

    def trunk_and_last(self) -> tuple[nn.Sequential, nn.Module]:
        """Return all before the last block, images to maps, and the last block."""
        blocks = list(self.blocks)
        return nn.Sequential(self.conv, self.bn, nn.ReLU(), *blocks[:-1]), blocks[-1]


@network("resnet8", paper="He et al., CVPR 2016")
def resnet8(
    num_classes: int, head: str = "linear", attention: str | None = None, in_channels: int = 3
) -> ResNet:
    """Return a new 8-layer network; see `resnet32`."""
    return ResNet(8, num_classes, head, attention, in_channels)


@network("resnet20", paper="He et al., CVPR 2016")
def resnet20(
    num_classes: int, head: str = "linear", attention: str | None = None, in_channels: int = 3
) -> ResNet:
    """Return a new 20-layer network; see `resnet32`."""
    return ResNet(20, num_classes, head, attention, in_channels)


@network("resnet32", paper="He et al., CVPR 2016")
def resnet32(
    num_classes: int, head: str = "linear", attention: str | None = None, in_channels: int = 3
) -> ResNet:
    """Return a new 32-layer network, 464,154 parameters for ten classes and colour images.

    `head` is "linear" or "cosine"; `attention` None, "simam", "se", "cbam" or "eca".

    Raises:
        InputError: there is no head or attention module of this name.
    """
    return ResNet(32, num_classes, head, attention, in_channels)


@network("resnet44", paper="He et al., CVPR 2016")
def resnet44(
    num_classes: int, head: str = "linear", attention: str | None = None, in_channels: int = 3
) -> ResNet:
    """Return a new 44-layer network; see `resnet32`."""
    return ResNet(44, num_classes, head, attention, in_channels)


@network("resnet56", paper="He et al., CVPR 2016")
def resnet56(
    num_classes: int, head: str = "linear", attention: str | None = None, in_channels: int = 3
) -> ResNet:
    """Return a new 56-layer network; see `resnet32`."""
    return ResNet(56, num_classes, head, attention, in_channels)
