"""Augmentation of whole batches of uint8 images, with separate random draws for each image."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ltpipe.data.resampling import resized_box, resized_boxes
from ltpipe.utils.errors import InputError

_CROP_TRIES = 10
_CROP_RATIO = (3 / 4, 4 / 3)
_LUMA = (0.2989, 0.587, 0.114)


@dataclass(frozen=True)
class Augmentation:
    """What happens to a training image; `size` alone also defines the plain test view.

    Attributes:
        size: (height, width) that the network sees.
        padding: zeros added on each side before a random crop of `size`.
        flip: mirror left to right with probability 1/2.
        resized_crop: random-resized-crop to `size` instead of the padded crop.
        crop_scale: between which shares of the image's area that crop lies.
        interpolation: bilinear or bicubic, how that crop is resized, antialiased.
        color_jitter: j; brightness, contrast and saturation factors are U(1 - j, 1 + j).

    Raises:
        InputError: a value outside its range, or `padding` together with `resized_crop`.
    """

    size: tuple[int, int]
    padding: int = 0
    flip: bool = False
    resized_crop: bool = False
    crop_scale: tuple[float, float] = (0.08, 1.0)
    interpolation: str = "bilinear"
    color_jitter: float = 0.0

    def __post_init__(self) -> None:
        if min(self.size) < 1:
            raise InputError(f"augmentation size is {self.size}: both sides must be positive")
        if self.padding < 0:
            raise InputError(f"augmentation padding is {self.padding}: it can't be negative")
        if not 0 <= self.color_jitter <= 1:
            raise InputError(f"color_jitter is {self.color_jitter}: it must lie between 0 and 1")
        if self.resized_crop and self.padding:
            raise InputError("padding and resized_crop exclude each other: set one of them")


def augment(
    images: torch.Tensor, augmentation: Augmentation, generator: torch.Generator
) -> torch.Tensor:
    """Return a randomly changed copy of a batch.

    All draws of the batch come from `generator` as one block, whatever device it is on, so
    equal generators and batches give equal bytes.

    Args:
        images: (B, H, W, C) uint8, contiguous.

    Returns:
        (B, C, h, w) uint8 in channels-last memory, on the device of `images`.
    """
    plan = augmentation
    drawn = draw(plan, len(images), generator).to(images.device)
    if plan.resized_crop:
        count, tall, wide = images.shape[:3]
        sizes = torch.tensor([tall, wide], dtype=torch.float64).expand(count, 2)
        boxes = crop_boxes(plan, drawn, sizes.to(images.device, non_blocking=True))
        return crop(images, plan, drawn, boxes)
    place = _parts(plan, drawn)[0]
    batch = _padded_crop(images, plan.size, plan.padding, place, _mirrored(plan, drawn))
    return coloured(batch, plan, drawn)


def draw(plan: Augmentation, count: int, generator: torch.Generator) -> torch.Tensor:
    """Return all that is drawn for a batch, a column an image, on the generator's device."""
    return torch.rand(
        (sum(_rows(plan)), count), generator=generator, device=generator.device, dtype=torch.float32
    )


def crop_boxes(plan: Augmentation, drawn: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
    """Return random-resized-crop's boxes (Szegedy et al., CVPR 2015) in images of any size.

    A share of the area and log aspect ratio U(log 3/4, log 4/3); of ten candidates the first
    that fits is taken, or else the largest centred crop within the ratio bounds.

    Args:
        drawn: as `draw` gives it.
        sizes: (B, 2) float64 height and width of each image.

    Returns:
        (B, 4) float32 top, left, height, width, whole numbers.
    """
    place, area, shape, _, _ = _parts(plan, drawn)
    low, high = plan.crop_scale
    tall, wide = sizes.float().unbind(1)
    target = tall * wide * (low + (high - low) * area)
    log_low, log_high = math.log(_CROP_RATIO[0]), math.log(_CROP_RATIO[1])
    ratio = torch.exp(log_low + (log_high - log_low) * shape)
    widths = torch.round(torch.sqrt(target * ratio))
    heights = torch.round(torch.sqrt(target / ratio))
    fits = (widths >= 1) & (widths <= wide) & (heights >= 1) & (heights <= tall)
    first = fits.int().argmax(0, keepdim=True)
    fitting = fits.any(0)
    # Of whole numbers in double precision, rounded as Python does.
    widest = torch.minimum(sizes[:, 1], torch.round(sizes[:, 0] * _CROP_RATIO[1])).float()
    tallest = torch.minimum(sizes[:, 0], torch.round(sizes[:, 1] / _CROP_RATIO[0])).float()
    width = torch.where(fitting, widths.gather(0, first)[0], widest)
    height = torch.where(fitting, heights.gather(0, first)[0], tallest)
    top = torch.where(
        fitting, torch.floor(place[0] * (tall - height + 1)), torch.floor((tall - tallest) / 2)
    )
    left = torch.where(
        fitting, torch.floor(place[1] * (wide - width + 1)), torch.floor((wide - widest) / 2)
    )
    return torch.stack([top, left, height, width], 1)


def crop(
    images: torch.Tensor, plan: Augmentation, drawn: torch.Tensor, boxes: torch.Tensor
) -> torch.Tensor:
    """Return each image's box resized to the network's size, mirrored and coloured as drawn.

    Args:
        images: (B, H, W, C) uint8.
        boxes: (B, 4) as `crop_boxes` gives them, within the images.

    Returns:
        (B, C, h, w) uint8 in channels-last memory.
    """
    if images.device.type == "cpu":
        size, kind = plan.size, plan.interpolation
        rows = [
            resized_box(image, box, size, kind, mirrored)
            for image, (box, mirrored) in zip(images, views(plan, drawn, boxes), strict=True)
        ]
        batch = torch.stack(rows).permute(0, 3, 1, 2)
    else:
        mirrored = _mirrored(plan, drawn)
        batch = resized_boxes(images, boxes, plan.size, plan.interpolation, mirrored)
    return coloured(batch, plan, drawn)


def views(
    plan: Augmentation, drawn: torch.Tensor, boxes: torch.Tensor
) -> list[tuple[list[int], bool]]:
    """Return each image's box, and whether it is mirrored, as numbers of the host."""
    mirrored = _mirrored(plan, drawn)
    flags = [False] * len(boxes) if mirrored is None else mirrored.tolist()
    return list(zip(boxes.long().tolist(), flags, strict=True))


def _rows(plan: Augmentation) -> list[int]:
    """Return how many numbers an image draws for place, area, shape, mirroring and colour."""
    tries = _CROP_TRIES if plan.resized_crop else 0
    return [2, tries, tries, int(plan.flip), 3 if plan.color_jitter else 0]


def _parts(plan: Augmentation, drawn: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return drawn.split(_rows(plan))


def _mirrored(plan: Augmentation, drawn: torch.Tensor) -> torch.Tensor | None:
    return drawn[sum(_rows(plan)[:3])] < 0.5 if plan.flip else None


def coloured(batch: torch.Tensor, plan: Augmentation, drawn: torch.Tensor) -> torch.Tensor:
    """Return (B, C, h, w) uint8 with its colours changed as drawn."""
    if not plan.color_jitter:
        return batch
    return color_jitter(batch, 1 + plan.color_jitter * (2 * _parts(plan, drawn)[4] - 1))


def centre_crop(images: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Return the middle `size` of (B, H, W, C) images as (B, C, h, w) channels-last."""
    top, left = (images.shape[1] - size[0]) // 2, (images.shape[2] - size[1]) // 2
    crop = images[:, top : top + size[0], left : left + size[1]]
    return crop.contiguous().permute(0, 3, 1, 2)


def normalise(
    images: torch.Tensor, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype
) -> torch.Tensor:
    """Return (images / 255 - mean) / std.

    Args:
        images: (B, C, H, W) uint8.
        mean: C channel means on the scale 0 .. 1.
        std: C channel standard deviations on the same scale.

    Returns:
        (B, C, H, W) of `dtype` in channels-last memory, computed in float32.
    """
    # Kept on the device: a copy from the host for each batch would stall a GPU.
    return scaled(images, *_affine(tuple(mean), tuple(std), images.device), dtype)


class Normalise(torch.nn.Module):
    """`normalise` as a module, whose constants move with it and are part of an exported graph."""

    scale: torch.Tensor
    shift: torch.Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        scale, shift = _scale_and_shift(mean, std)
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("shift", shift, persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return scaled(images, self.scale, self.shift, self.dtype)


def scaled(
    images: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    """Return ``images scale + shift`` of `dtype` in channels-last memory."""
    batch = torch.addcmul(shift, images.to(torch.float32), scale)
    return batch.to(dtype).contiguous(memory_format=torch.channels_last)


@functools.lru_cache(maxsize=16)
def _affine(
    mean: tuple[float, ...], std: tuple[float, ...], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    scale, shift = _scale_and_shift(mean, std)
    return scale.to(device), shift.to(device)


def _scale_and_shift(
    mean: Sequence[float], std: Sequence[float]
) -> tuple[torch.Tensor, torch.Tensor]:
    m = torch.tensor(mean, dtype=torch.float64)
    s = torch.tensor(std, dtype=torch.float64)
    scale, shift = 1 / (255 * s), -m / s
    return scale.float().view(1, -1, 1, 1), shift.float().view(1, -1, 1, 1)


def _padded_crop(
    images: torch.Tensor,
    size: tuple[int, int],
    padding: int,
    place: torch.Tensor,
    mirrored: torch.Tensor | None,
) -> torch.Tensor:
    """Zero-pad, crop at a uniform place and mirror, as one gather of whole pixels."""
    height, width = size
    padded = F.pad(images, (0, 0, padding, padding, padding, padding)) if padding else images
    count, tall, wide, channels = padded.shape
    device = images.device
    top = (place[0] * (tall - height + 1)).int()
    left = (place[1] * (wide - width + 1)).int()
    column = torch.arange(width, dtype=torch.int32, device=device).expand(count, width)
    if mirrored is not None:
        column = torch.where(mirrored[:, None], width - 1 - column, column)
    column = column + left[:, None]
    row = torch.arange(height, dtype=torch.int32, device=device) + top[:, None]
    row = row + torch.arange(count, dtype=torch.int32, device=device)[:, None] * tall
    # 32-bit pixel numbers: the index is what this is bound by. A batch has under 2**31 pixels.
    index = (row * wide)[:, :, None] + column[:, None, :]
    pixels = padded.view(-1, channels).index_select(0, index.view(-1))
    return pixels.view(count, height, width, channels).permute(0, 3, 1, 2)


def color_jitter(images: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """Change brightness, contrast, saturation, in this order, by (3, B) factors.

    Grey images have no saturation.

    Each is a blend factor * image + (1 - factor) * other, clipped to 0 .. 255, where other is
    black, the mean grey of the image, and the grey image.
    """
    brightness, contrast, saturation = factors[:, :, None, None, None]
    batch = (images.float() * brightness).clamp_(0, 255)
    mean = to_grey(batch).mean(dim=(1, 2, 3), keepdim=True)
    batch = (contrast * batch + (1 - contrast) * mean).clamp_(0, 255)
    if batch.shape[1] == 3:
        batch = (saturation * batch + (1 - saturation) * to_grey(batch)).clamp_(0, 255)
    return batch.round().to(torch.uint8)


def to_grey(images: torch.Tensor) -> torch.Tensor:
    """Return the grey (B, 1, H, W) of RGB images of floats, and grey images as they are."""
    if images.shape[1] != 3:
        return images
    red, green, blue = images.unbind(1)
    return (_LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue).unsqueeze(1)
