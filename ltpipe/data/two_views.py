"""The two views of an image that contrastive training compares, as PaCo's released code makes them.

Cui et al., "Parametric Contrastive Learning", ICCV 2021. View one is that of classification at its
strongest: on CIFAR a padded crop with AutoAugment (Cubuk et al., CVPR 2019) and a square cut out,
on ImageNet a resized crop with colour jitter and RandAugment of two operations at level 10 (timm's
``rand-n2-m10-mstd0.5``). View two is SimCLR's: a resized crop, colour jitter, grey, blur.

Operations compute what Pillow's do; pixels are sampled at the nearest place, where the released
code takes bicubic ones, and colours are jittered in one order, where torchvision draws it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from ltpipe.data import randaugment as ra
from ltpipe.data.augment import Augmentation, augment, color_jitter, to_grey
from ltpipe.data.randaugment import Operation, apply_operations

_GREY_FILL = 128
_BLUR_RADIUS = 6


class View(Protocol):
    """Makes one view of a batch."""

    def __call__(self, images: Tensor, draws: torch.Generator, choices: torch.Generator) -> Tensor:
        """Return (B, C, h, w) uint8 of (B, H, W, C) uint8.

        Args:
            draws: a generator on the images' device.
            choices: a CPU generator, from which operations are chosen.
        """
        ...


def two_views(kind: str, size: tuple[int, int], interpolation: str) -> tuple[View, View]:
    """Return the released views for `kind`, ``cifar`` or ``imagenet``."""
    if kind == "cifar":
        weak = Augmentation(size=size, padding=4, flip=True)
        low, hue = 0.2, 0.1
    else:
        weak = Augmentation(
            size=size,
            resized_crop=True,
            flip=True,
            interpolation=interpolation,
            color_jitter=0.4,
        )
        low, hue = 0.08, 0.0
    contrasted = Augmentation(
        size=size,
        resized_crop=True,
        flip=True,
        crop_scale=(low, 1.0),
        interpolation=interpolation,
    )

    def strong(images: Tensor, draws: torch.Generator, choices: torch.Generator) -> Tensor:
        batch = augment(images, weak, draws)
        if kind == "cifar":
            return cut_out(auto_augment(batch, choices), choices, size[1] // 2)
        return rand_augment(batch, choices)

    def simclr(images: Tensor, draws: torch.Generator, choices: torch.Generator) -> Tensor:
        return recolour(augment(images, contrasted, draws), draws, hue)

    return strong, simclr


def recolour(images: Tensor, draws: torch.Generator, hue: float) -> Tensor:
    """Return images with jittered colours, a fifth of them grey, half of them blurred.

    Brightness, contrast and saturation are multiplied by U(0.6, 1.4). With `hue` the hue turns by
    U(-hue, hue) of a circle and a fifth of the images keep their colours, as torchvision's
    ``RandomApply(ColorJitter(0.4, 0.4, 0.4, hue), p=0.8)``; without, all are jittered.

    Args:
        images: (B, C, H, W) uint8.
    """
    drawn = torch.rand((8, len(images)), generator=draws, device=draws.device).to(images.device)
    changed = color_jitter(images, 0.6 + 0.8 * drawn[:3])
    if hue:
        changed = turn_hue(changed, hue * (2 * drawn[3] - 1))
        changed = torch.where(_of(drawn[4] < 0.8), changed, images)
    if images.shape[1] == 3:
        grey = to_grey(changed.float()).round().to(torch.uint8).expand_as(changed)
        changed = torch.where(_of(drawn[5] < 0.2), grey, changed)
    blurred = blur(changed, 0.1 + 1.9 * drawn[6])
    return torch.where(_of(drawn[7] < 0.5), blurred, changed)


def _of(chosen: Tensor) -> Tensor:
    return chosen.view(-1, 1, 1, 1)


def turn_hue(images: Tensor, turn: Tensor) -> Tensor:
    """Return RGB images with their hue moved by `turn` (B,) of the colour circle.

    In hue, saturation and value (Smith, SIGGRAPH 1978); images of one channel have no hue.
    """
    if images.shape[1] != 3:
        return images
    levels = images.float()
    high, low = levels.amax(1), levels.amin(1)
    spread = high - low
    red, green, blue = levels.unbind(1)
    safe = spread.clamp_min(1)
    hue = torch.where(
        high == red,
        (green - blue) / safe,
        torch.where(high == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    hue = hue + 6 * turn.view(-1, 1, 1)
    # Each channel is the value less a share of the spread that depends on how far its hue is.
    channels = []
    for shift in (5, 3, 1):
        place = torch.remainder(shift + hue, 6)
        share = torch.minimum(place, 4 - place).clamp(0, 1)
        channels.append(high - spread * share)
    return torch.stack(channels, 1).round().clamp(0, 255).to(torch.uint8)


def blur(images: Tensor, sigma: Tensor) -> Tensor:
    """Return images blurred by a Gaussian of `sigma` (B,) pixels; borders repeat their last pixel.

    The kernel is cut at six pixels, three deviations of the widest.
    """
    offsets = torch.arange(-_BLUR_RADIUS, _BLUR_RADIUS + 1, device=images.device)
    kernel = torch.exp(-0.5 * (offsets / sigma.unsqueeze(1)) ** 2)
    kernel = kernel / kernel.sum(1, keepdim=True)
    batch = images.float()
    for dimension in (2, 3):
        pad = [_BLUR_RADIUS if d == 5 - dimension else 0 for d in (2, 2, 3, 3)]
        padded = F.pad(batch, pad, mode="replicate")
        side = batch.shape[dimension]
        batch = torch.stack(
            [_of(kernel[:, k]) * padded.narrow(dimension, k, side) for k in range(len(offsets))]
        ).sum(0)
    return batch.round().clamp(0, 255).to(torch.uint8)


def auto_augment(images: Tensor, choices: torch.Generator) -> Tensor:
    """Return a copy under AutoAugment's policy for CIFAR-10: one of 25 pairs of operations each."""
    count = len(images)
    pair = torch.randint(len(CIFAR_POLICY), (count,), generator=choices)
    uniform = torch.rand((2, 2, count), generator=choices)
    table = torch.tensor(CIFAR_POLICY)[pair]
    # By step: number, probability and level of each image's operation.
    which, share, level = table.permute(2, 1, 0)
    drawn = torch.stack([uniform[:, 0] - share, uniform[:, 1], level / 9], 1)
    return _in_steps(images, which.long(), drawn, CIFAR_OPERATIONS)


def rand_augment(images: Tensor, choices: torch.Generator) -> Tensor:
    """Return a copy under RandAugment: two of fifteen operations, each applied to half of them.

    Levels are N(10, 0.5), cut to 0 .. 10.
    """
    count = len(images)
    which, drawn = [], []
    for _ in range(2):
        which.append(torch.randint(len(LEVEL_OPERATIONS), (count,), generator=choices))
        level = torch.randn(count, generator=choices) * 0.5 + 10
        chance, sign = torch.rand((2, count), generator=choices)
        drawn.append(torch.stack([chance - 0.5, sign, level.clamp(0, 10) / 10]))
    return _in_steps(images, torch.stack(which), torch.stack(drawn), LEVEL_OPERATIONS)


def _in_steps(
    images: Tensor, which: Tensor, drawn: Tensor, operations: Sequence[Operation]
) -> Tensor:
    """Return images with one operation after another.

    Args:
        which: (S, B) int64, on the CPU.
        drawn: (S, 3, B), on the CPU: below 0 where the operation is applied, below 1/2 where a
            signed one goes the other way, and its strength.
    """
    batch = images
    for groups, (applied, sign, strength) in ra.grouped(which, drawn, images.device):
        place = torch.zeros((2, len(images)), device=images.device)
        changed = apply_operations(batch, groups, strength, sign < 0.5, place, operations)
        batch = torch.where(_of(applied < 0), changed, batch)
    return batch


def cut_out(images: Tensor, choices: torch.Generator, side: int) -> Tensor:
    """Return a copy with a black square of `side` about a drawn pixel, cut at the borders.

    DeVries and Taylor, "Improved Regularization of Convolutional Neural Networks with Cutout",
    arXiv 2017.
    """
    height, width = images.shape[2:]
    middle = [torch.randint(n, (len(images), 1), generator=choices) for n in (height, width)]
    y, x = torch.stack(middle).to(images.device, non_blocking=True)
    rows, columns = (torch.arange(n, device=images.device) for n in (height, width))
    down = (rows >= y - side // 2) & (rows < y + side // 2)
    across = (columns >= x - side // 2) & (columns < x + side // 2)
    return images.masked_fill((down.unsqueeze(2) & across.unsqueeze(1)).unsqueeze(1), 0)


_Apply = Callable[[Tensor, Tensor, Tensor], Tensor]


def _filled(move: _Apply) -> _Apply:
    """Return a geometric operation that leaves grey, not black, where there was no pixel."""

    def apply(images: Tensor, value: Tensor, place: Tensor) -> Tensor:
        inside = move(torch.ones_like(images[:, :1]), value, place).bool()
        return torch.where(inside, move(images, value, place), _GREY_FILL)

    return apply


def _about_one(blend: _Apply) -> _Apply:
    """Return a blend whose factor is one and the value."""
    return lambda images, value, place: blend(images, 1 + value, place)


def _whole(operation: _Apply) -> _Apply:
    """Return an operation whose value is cut to a whole number."""
    return lambda images, value, place: operation(images, value.floor(), place)


def _rounded(operation: _Apply) -> _Apply:
    return lambda images, value, place: operation(images, value.round(), place)


def _solarize_add(images: Tensor, value: Tensor, place: Tensor) -> Tensor:
    """Brighten what is darker than 128."""
    brighter = (images.int() + value.int().view(-1, 1, 1, 1)).clamp(0, 255).to(torch.uint8)
    return torch.where(images < 128, brighter, images)


_SHIFT = 150 / 331
CIFAR_OPERATIONS = (
    Operation("shear_x", 0.0, 0.3, True, _filled(ra.shear_x)),
    Operation("shear_y", 0.0, 0.3, True, _filled(ra.shear_y)),
    Operation("translate_x", 0.0, _SHIFT, True, _filled(ra.translate_x)),
    Operation("translate_y", 0.0, _SHIFT, True, _filled(ra.translate_y)),
    Operation("rotate", 0.0, 30.0, False, _filled(ra.rotate)),
    Operation("color", 0.0, 0.9, True, _about_one(ra.color)),
    Operation("posterize", 8.0, 4.0, False, _rounded(ra.posterize)),
    Operation("solarize", 256.0, 0.0, False, ra.solarize),
    Operation("contrast", 0.0, 0.9, True, _about_one(ra.contrast)),
    Operation("sharpness", 0.0, 0.9, True, _about_one(ra.sharpness)),
    Operation("brightness", 0.0, 0.9, True, _about_one(ra.brightness)),
    Operation("autocontrast", 0.0, 1.0, False, ra.autocontrast),
    Operation("equalize", 0.0, 1.0, False, ra.equalize),
    Operation("invert", 0.0, 1.0, False, ra.invert),
)
LEVEL_OPERATIONS = (
    Operation("autocontrast", 0.0, 1.0, False, ra.autocontrast),
    Operation("equalize", 0.0, 1.0, False, ra.equalize),
    Operation("invert", 0.0, 1.0, False, ra.invert),
    Operation("rotate", 0.0, 30.0, True, _filled(ra.rotate)),
    Operation("posterize", 0.0, 4.0, False, _whole(ra.posterize)),
    Operation("solarize", 0.0, 256.0, False, _whole(ra.solarize)),
    Operation("solarize_add", 0.0, 110.0, False, _whole(_solarize_add)),
    Operation("color", 0.1, 1.9, False, ra.color),
    Operation("contrast", 0.1, 1.9, False, ra.contrast),
    Operation("brightness", 0.1, 1.9, False, ra.brightness),
    Operation("sharpness", 0.1, 1.9, False, ra.sharpness),
    Operation("shear_x", 0.0, 0.3, True, _filled(ra.shear_x)),
    Operation("shear_y", 0.0, 0.3, True, _filled(ra.shear_y)),
    Operation("translate_x", 0.0, 0.45, True, _filled(ra.translate_x)),
    Operation("translate_y", 0.0, 0.45, True, _filled(ra.translate_y)),
)


def _pairs(table: Sequence[str]) -> list[list[list[float]]]:
    """Return [pair][step] -> (operation's number, probability, level 0 .. 9) of lines of text."""
    numbers = {operation.name: float(i) for i, operation in enumerate(CIFAR_OPERATIONS)}
    steps = [[step.split() for step in line.split(",")] for line in table]
    return [[[numbers[n], float(p), float(level)] for n, p, level in pair] for pair in steps]


# Cubuk et al., CVPR 2019, appendix: the policy found on reduced CIFAR-10.
CIFAR_POLICY = _pairs(
    (
        "invert .1 7, contrast .2 6",
        "rotate .7 2, translate_x .3 9",
        "sharpness .8 1, sharpness .9 3",
        "shear_y .5 8, translate_y .7 9",
        "autocontrast .5 8, equalize .9 2",
        "shear_y .2 7, posterize .3 7",
        "color .4 3, brightness .6 7",
        "sharpness .3 9, brightness .7 9",
        "equalize .6 5, equalize .5 1",
        "contrast .6 7, sharpness .6 5",
        "color .7 7, translate_x .5 8",
        "equalize .3 7, autocontrast .4 8",
        "translate_y .4 3, sharpness .2 6",
        "brightness .9 6, color .2 8",
        "solarize .5 2, invert .0 3",
        "equalize .2 0, autocontrast .6 0",
        "equalize .2 8, equalize .6 4",
        "color .9 9, equalize .6 6",
        "autocontrast .8 4, solarize .2 8",
        "brightness .1 3, color .7 0",
        "solarize .4 5, autocontrast .9 3",
        "translate_y .9 9, translate_y .7 9",
        "autocontrast .9 2, solarize .8 3",
        "equalize .8 8, invert .1 3",
        "translate_y .7 9, autocontrast .9 1",
    )
)
