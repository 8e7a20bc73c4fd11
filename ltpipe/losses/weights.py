"""Class weights: inverse frequency and inverse effective number."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ltpipe.losses.base import checked_counts
from ltpipe.utils.errors import InputError


def inverse_frequency_weights(class_counts: Sequence[int] | Tensor) -> Tensor:
    """Return ``1 / n_c``, scaled to sum to C, as float32 (C,).

    Raises:
        InputError: a class has no training image.
    """
    return powered_frequency_weights(class_counts, 1.0)


def powered_frequency_weights(class_counts: Sequence[int] | Tensor, exponent: float) -> Tensor:
    """Return ``n_c ** -exponent``, scaled to sum to C, as float32 (C,).

    Zhang et al., "Distribution Alignment", CVPR 2021, eq. 8, with rho as the exponent.

    Raises:
        InputError: a class has no training image.
    """
    return _sum_to_classes(checked_counts(class_counts) ** -exponent)


def effective_number_weights(class_counts: Sequence[int] | Tensor, beta: float = 0.9999) -> Tensor:
    """Return ``(1 - beta) / (1 - beta ** n_c)``, scaled to sum to C, as float32 (C,).

    The inverse of the effective number of samples, Cui et al., "Class-Balanced Loss Based on
    Effective Number of Samples", CVPR 2019, eq. 2. 0 weighs all classes alike; towards 1
    the weights become those of the inverse frequency.

    Raises:
        InputError: a class has no training image; `beta` is outside [0, 1).
    """
    if not 0 <= beta < 1:
        raise InputError(f"beta must be at least 0 and below 1, not {beta:g}")
    exponents = checked_counts(class_counts) * (math.log(beta) if beta else -math.inf)
    # expm1 keeps the digits that 1 - beta ** n loses where beta is close to 1.
    return _sum_to_classes(-1 / torch.expm1(exponents))


def _sum_to_classes(weights: Tensor) -> Tensor:
    return (weights * (len(weights) / weights.sum())).float()
