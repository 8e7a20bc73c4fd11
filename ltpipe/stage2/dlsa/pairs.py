"""Pairs of samples of different classes."""

from __future__ import annotations

import torch
from torch import Tensor

from ltpipe.utils.errors import InputError


def class_pairs(
    labels: Tensor, num_classes: int, number: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Draw pairs: two different classes uniformly, one sample of each uniformly.

    Args:
        labels: (N,) int64 in 0 .. num_classes-1, on the CPU; classes without samples are not drawn.
        number: how many pairs.
        generator: a CPU generator.

    Returns:
        The positions of both samples, (number,) int64 each.

    Raises:
        InputError: there are fewer than two classes.
    """
    counts = torch.bincount(labels, minlength=num_classes)
    present = counts.nonzero().squeeze(1)
    if len(present) < 2:
        raise InputError(f"pairs need samples of two classes; there are {len(present)}")
    one = torch.randint(len(present), (number,), generator=generator)
    step = torch.randint(1, len(present), (number,), generator=generator)
    by_class = torch.argsort(labels, stable=True)
    first = counts.cumsum(0) - counts
    positions = []
    for classes in (present[one], present[(one + step) % len(present)]):
        within = torch.rand(number, dtype=torch.float64, generator=generator) * counts[classes]
        positions.append(by_class[first[classes] + within.long()])
    return positions[0], positions[1]
