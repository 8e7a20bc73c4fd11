"""Boxes of images brought to one size as Pillow and torchvision do it: antialiased, on whole bytes.

An output pixel is a weighted mean of those that its kernel covers, along rows first and then along
columns, each rounded to a byte; a kernel is as much wider as the box is larger than the output, and
ends at the box.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

_CUBIC = -0.5


def resized_box(
    image: Tensor, box: Sequence[int], size: tuple[int, int], interpolation: str, mirrored: bool
) -> Tensor:
    """Return one box of one image, by the CPU's vector instructions.

    Args:
        image: (H, W, C) uint8, on the CPU.
        box: top, left, height, width.
        size: (h, w) of the result.
        interpolation: bilinear or bicubic.
        mirrored: whether the result is mirrored left to right.

    Returns:
        (h, w, C) uint8, torchvision's ``resized_crop`` of the image.
    """
    top, left, height, width = box
    part = image[top : top + height, left : left + width].permute(2, 0, 1)[None]
    part = part.contiguous(memory_format=torch.channels_last)
    resized = F.interpolate(part, size, mode=interpolation, antialias=True)
    pixels = resized[0].permute(1, 2, 0)
    return pixels.flip(1) if mirrored else pixels


def resized_boxes(
    images: Tensor,
    boxes: Tensor,
    size: tuple[int, int],
    interpolation: str,
    mirrored: Tensor | None = None,
) -> Tensor:
    """Return a box of each image of a batch by two products, on any device, waiting for nothing.

    The bytes are those of `resized_box`, but for one level where its weights of 16 bits round
    otherwise.

    Args:
        images: (B, H, W, C) uint8.
        boxes: (B, 4) top, left, height, width, whole numbers of float32.
        mirrored: (B,) bool, which are mirrored left to right.

    Returns:
        (B, C, h, w) uint8 in channels-last memory.
    """
    count, tall, wide, channels = images.shape
    top, left, height, width = boxes.unbind(1)
    down = _weights(top, height, size[0], tall, interpolation)
    along = _weights(left, width, size[1], wide, interpolation)
    if mirrored is not None:
        along = torch.where(mirrored[:, None, None], along.flip(1), along)
    rows = images.permute(0, 1, 3, 2).float().reshape(count, tall * channels, wide)
    rows = _as_bytes(rows @ along.transpose(1, 2)).view(count, tall, channels * size[1])
    found = _as_bytes(down @ rows).view(count, size[0], channels, size[1]).permute(0, 2, 1, 3)
    return found.to(torch.uint8).contiguous(memory_format=torch.channels_last)


def _as_bytes(values: Tensor) -> Tensor:
    # Halves go up, as in whole numbers.
    return values.add_(0.5).floor_().clamp_(0, 255)


def _weights(start: Tensor, extent: Tensor, outputs: int, side: int, interpolation: str) -> Tensor:
    """Return (B, outputs, side), what each pixel of a side adds to each of the outputs."""
    scale = (extent / outputs)[:, None]
    pixels = torch.arange(side, dtype=torch.float32, device=start.device) + 0.5 - start[:, None]
    steps = torch.arange(outputs, dtype=torch.float32, device=start.device) + 0.5
    distance = pixels[:, None, :] - (steps * scale)[:, :, None]
    distance = (distance / scale.clamp(min=1)[:, :, None]).abs_()
    inside = (pixels > 0) & (pixels < extent[:, None])
    weights = _KERNELS[interpolation](distance) * inside[:, None, :]
    return weights / weights.sum(2, keepdim=True)


def _triangle(x: Tensor) -> Tensor:
    return (1 - x).clamp(min=0)


def _cubic(x: Tensor) -> Tensor:
    """Keys, IEEE Trans. ASSP 1981, with a = -1/2, at distances x of 0 and more."""
    near = ((_CUBIC + 2) * x - (_CUBIC + 3)) * x * x + 1
    far = _CUBIC * (((x - 5) * x + 8) * x - 4)
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))


_KERNELS = {"bilinear": _triangle, "bicubic": _cubic}
