"""RandAugment of batches: each image draws its own operations, images are grouped by operation.

Cubuk et al., "RandAugment", NeurIPS 2020, with the operations and ranges of boosted contrastive
learning (Zhou et al., ICML 2022), whose strength follows each sample's memory. Operations compute
what Pillow's do, on whole bytes: nearest pixels, black where there are none, truncated blends.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

# Pillow's weights of red, green and blue in grey, in units of 2 ** -16.
_GREY = (19595, 38470, 7471)
_GREY_ROUND = 0x8000
_FILL = (125, 123, 114)
SCALE = 30.0


@dataclass(frozen=True)
class Operation:
    """One operation: its name, the values at strength 0 and 1, and whether signs are drawn."""

    name: str
    low: float
    high: float
    signed: bool
    apply: Callable[[Tensor, Tensor, Tensor], Tensor]

    def value(self, strength: Tensor) -> Tensor:
        """Return the value at strength 0 .. 1."""
        return self.low + (self.high - self.low) * strength


def rand_augment(
    images: Tensor,
    memory: Tensor,
    generator: torch.Generator,
    *,
    operations: int = 2,
    floor: float = 0.0,
    random_strength: bool = True,
) -> Tensor:
    """Return a copy of the batch after ECVL's eq. 10, in the memory format of `images`.

    Each image draws `operations` of the fifteen with replacement, applies each with probability
    M, its memory, at strength ``floor + (30 - floor) M z`` on RandAugment's scale of 0 to 30, z
    being uniform (1 without `random_strength`).

    Args:
        images: (B, C, H, W) uint8.
        memory: (B,) M in 0 .. 1, on the device of the images.
        generator: a CPU generator; draws depend on nothing else.
    """
    count = len(images)
    drawn = torch.randint(len(OPERATIONS), (operations, count), generator=generator)
    uniform = torch.rand((operations, 5, count), generator=generator)
    batch = images.clone()
    for groups, (chance, zeta, sign, *place) in grouped(drawn, uniform, images.device):
        share = floor / SCALE
        strength = share + (1 - share) * memory * (zeta if random_strength else 1)
        changed = apply_operations(
            batch, groups, strength.clamp(0, 1), sign < 0.5, torch.stack(place)
        )
        applied = (chance < memory).view(-1, 1, 1, 1)
        batch = torch.where(applied, changed, batch)
    return batch


class Groups(NamedTuple):
    """Which images take which operation.

    `order` (B,) int64 has the images of the first operation, of the second, and so on, on their
    device; `sizes` says how many each has.
    """

    order: Tensor
    sizes: list[int]


def grouped(which: Tensor, drawn: Tensor, device: torch.device) -> Iterator[tuple[Groups, Tensor]]:
    """Yield each step's groups and numbers on `device`, all brought there by one move.

    Args:
        which: (S, B) int64 number of each image's operation, on the CPU.
        drawn: (S, R, B) what else is drawn, on the CPU.
    """
    sizes = [torch.bincount(step).tolist() for step in which]
    # Whole numbers below 2 ** 24 are themselves in float32.
    order = torch.argsort(which, dim=1, stable=True).unsqueeze(1).float()
    moved = torch.cat([order, drawn], 1).to(device, non_blocking=True)
    for step, numbers in zip(moved, sizes, strict=True):
        yield Groups(step[0].long(), numbers), step[1:]


def apply_operations(
    images: Tensor,
    groups: Groups,
    strength: Tensor,
    negative: Tensor,
    place: Tensor,
    operations: Sequence[Operation] | None = None,
) -> Tensor:
    """Return the batch with each group's operation of `operations` applied to its images.

    Args:
        images: (B, C, H, W) uint8.
        strength: (B,) in 0 .. 1.
        negative: (B,) bool, where signed operations go the other way.
        place: (2, B) uniform numbers, the centre of what is cut out.
        operations: OPERATIONS unless given.
    """
    result = images.clone()
    parts = groups.order.split(groups.sizes)
    for operation, chosen in zip(operations or OPERATIONS, parts, strict=False):
        if not len(chosen):
            continue
        value = operation.value(strength[chosen])
        if operation.signed:
            value = torch.where(negative[chosen], -value, value)
        result[chosen] = operation.apply(images[chosen], value, place[:, chosen])
    return result


def _affine(images: Tensor, matrix: Tensor) -> Tensor:
    """Return images whose pixel (x, y) is the source's at ``matrix (x + 1/2, y + 1/2, 1)``.

    Args:
        matrix: (B, 2, 3) float64.
    """
    count, channels, height, width = images.shape
    x = torch.arange(width, device=images.device, dtype=torch.float64) + 0.5
    y = torch.arange(height, device=images.device, dtype=torch.float64).unsqueeze(1) + 0.5
    along, down, shift = (matrix[:, :, i, None, None] for i in range(3))
    source = torch.floor(along * x + down * y + shift).long()
    column, row = source[:, 0], source[:, 1]
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    index = row.clamp(0, height - 1) * width + column.clamp(0, width - 1)
    index = index.view(count, 1, -1).expand(-1, channels, -1)
    pixels = images.reshape(count, channels, -1).gather(2, index).view(images.shape)
    return pixels * inside.unsqueeze(1)


def _matrix(images: Tensor, **entries: Tensor) -> Tensor:
    """Return identity maps (B, 2, 3) with some entries, called by row and column, replaced."""
    matrix = torch.eye(2, 3, dtype=torch.float64, device=images.device).repeat(len(images), 1, 1)
    for name, value in entries.items():
        matrix[:, int(name[1]), int(name[2])] = value.double()
    return matrix


def shear_x(images: Tensor, value: Tensor, place: Tensor) -> Tensor:
    return _affine(images, _matrix(images, m01=value))


def shear_y(images: Tensor, value: Tensor, place: Tensor) -> Tensor:
    return _affine(images, _matrix(images, m10=value))


def translate_x(images: Tensor, value: Tensor, place: Tensor) -> Tensor:
    return _affine(images, _matrix(images, m02=value * images.shape[3]))


def translate_y(images: Tensor, value: Tensor, place: Tensor) -> Tensor:
    return _affine(images, _matrix(images, m12=value * images.shape[2]))


def rotate(images: Tensor, value: Tensor, place: Tensor) -> Tensor:
    """Counter-clockwise about the middle, in degrees."""
    angle = torch.deg2rad(value.double())
    cos, sin = torch.cos(angle), torch.sin(angle)
    x, y = images.shape[3] / 2, images.shape[2] / 2
    shifts = {"m02": x - cos * x + sin * y, "m12": y - sin * x - cos * y}
    return _affine(images, _matrix(images, m00=cos, m01=-sin, m10=sin, m11=cos, **shifts))


def autocontrast(images: Tensor, value: Tensor, place: Tensor) -> Tensor:
    """Stretch each channel to 0 .. 255; a channel of one value stays."""
    levels = images.double()
    low = levels.amin((2, 3), keepdim=True)
    high = levels.amax((2, 3), keepdim=True)
    scale = 255 / (high - low).clamp_min(1)
    stretched = (levels * scale - low * scale).clamp(0, 255).to(torch.uint8)
    return torch.where(high > low, stretched, images)


def invert(images: Tensor, value: Tensor, place: Tensor) -> Tensor:
    return 255 - images


def equalize(images: Tensor, value: Tensor, place: Tensor) -> Tensor:
    """Even out each channel's histogram by a table of 256 levels, in whole numbers."""
    count, channels = images.shape[:2]
    flat = images.reshape(count * channels, -1).long()
    histogram = torch.zeros((len(flat), 256), dtype=torch.int64, device=images.device)
    histogram.scatter_add_(1, flat, torch.ones_like(flat))
    last = 255 - (histogram.flip(1) > 0).int().argmax(1, keepdim=True)
    step = (flat.shape[1] - histogram.gather(1, last)) // 255
    before = histogram.cumsum(1) - histogram
    table = ((step // 2 + before) // step.clamp_min(1)).clamp(0, 255)
    identity = torch.arange(256, device=images.device).expand_as(table)
    table = torch.where(step > 0, table, identity)
    return table.gather(1, flat).to(torch.uint8).view(images.shape)


def solarize(images: Tensor, value: Tensor, place: Tensor) -> Tensor:
    return torch.where(images < value.view(-1, 1, 1, 1), images, 255 - images)


def posterize(images: Tensor, value: Tensor, place: Tensor) -> Tensor:
    """Keep the highest bits of each value."""
    dropped = (8 - value.int()).to(torch.uint8).view(-1, 1, 1, 1)
    return (images >> dropped) << dropped


def contrast(images: Tensor, value: Tensor, place: Tensor) -> Tensor:
    mean = _grey(images).mean((1, 2, 3), keepdim=True)
    return _blend(torch.floor(mean + 0.5), images, value)


def color(images: Tensor, value: Tensor, place: Tensor) -> Tensor:
    return _blend(_grey(images), images, value)


def brightness(images: Tensor, value: Tensor, place: Tensor) -> Tensor:
    return _blend(torch.zeros((), dtype=torch.float64, device=images.device), images, value)


def sharpness(images: Tensor, value: Tensor, place: Tensor) -> Tensor:
    """Blend with a smoothed copy, whose outermost pixels are those of the image."""
    if min(images.shape[2:]) < 3:
        return images
    kernel = torch.ones((1, 1, 3, 3), device=images.device)
    kernel[..., 1, 1] = 5
    planes = images.reshape(-1, 1, *images.shape[2:]).float()
    inner = torch.floor(F.conv2d(planes, kernel).double() / 13 + 0.5)
    smooth = images.double()
    smooth[:, :, 1:-1, 1:-1] = inner.view(*images.shape[:2], *inner.shape[2:])
    return _blend(smooth, images, value)


def cutout(images: Tensor, value: Tensor, place: Tensor) -> Tensor:
    """Paint a square of `value` times the width, its centre drawn, cut at the borders."""
    height, width = images.shape[2:]
    half = (value * width / 2).view(-1, 1)
    x = torch.arange(width, device=images.device) + 0.5
    y = torch.arange(height, device=images.device) + 0.5
    across = (x - place[0].unsqueeze(1) * width).abs() <= half
    down = (y - place[1].unsqueeze(1) * height).abs() <= half
    painted = (down.unsqueeze(2) & across.unsqueeze(1)).unsqueeze(1)
    return torch.where(painted, _fill(images.shape[1], images.device), images)


@functools.lru_cache(maxsize=16)
def _fill(channels: int, device: torch.device) -> Tensor:
    fill = torch.tensor(_FILL, dtype=torch.uint8).view(1, 3, 1, 1)
    return (fill if channels == 3 else _grey(fill).to(torch.uint8)).to(device)


def _grey(images: Tensor) -> Tensor:
    """Return Pillow's grey of RGB images as float64 (B, 1, H, W); grey images as they are."""
    if images.shape[1] != 3:
        return images.double()
    red, green, blue = images.int().unbind(1)
    grey = (_GREY[0] * red + _GREY[1] * green + _GREY[2] * blue + _GREY_ROUND) >> 16
    return grey.unsqueeze(1).double()


def _blend(other: Tensor, images: Tensor, factor: Tensor) -> Tensor:
    """Return ``other + factor (images - other)``, cut to whole numbers in 0 .. 255."""
    mixed = other + factor.float().double().view(-1, 1, 1, 1) * (images.double() - other)
    return mixed.clamp(0, 255).to(torch.uint8)


OPERATIONS = (
    Operation("shear_x", 0.0, 0.6, True, shear_x),
    Operation("shear_y", 0.0, 0.6, True, shear_y),
    Operation("translate_x", 0.0, 0.66, True, translate_x),
    Operation("translate_y", 0.0, 0.66, True, translate_y),
    Operation("rotate", 0.0, 60.0, True, rotate),
    Operation("autocontrast", 0.0, 1.0, False, autocontrast),
    Operation("invert", 0.0, 1.0, False, invert),
    Operation("equalize", 0.0, 1.0, False, equalize),
    Operation("solarize", 0.0, 110.0, False, solarize),
    Operation("posterize", 4.0, 8.0, False, posterize),
    Operation("contrast", 0.1, 1.9, False, contrast),
    Operation("color", 0.1, 1.9, False, color),
    Operation("brightness", 0.1, 1.9, False, brightness),
    Operation("sharpness", 0.1, 1.9, False, sharpness),
    Operation("cutout", 0.0, 0.4, False, cutout),
)
