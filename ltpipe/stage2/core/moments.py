"""Class means and covariances of a feature table, streamed once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ltpipe.stage2.core.batches import unit_rows

# Rows at a time: long enough for products to run at full speed, short enough for the memory.
_ROWS = 1 << 13


@dataclass(frozen=True)
class Moments:
    """Of C classes, float64: `means` (C, D), pooled `scatter` (D, D), `counts` (C,).

    The scatter sums ``(x - mu_y)(x - mu_y)'`` over all samples, each by its weight.
    """

    means: Tensor
    scatter: Tensor
    counts: Tensor


def class_moments(
    features: np.ndarray,
    labels: np.ndarray,
    classes: int,
    device: torch.device,
    *,
    unit: bool = False,
    balanced: bool = False,
) -> Moments:
    """Return the moments of features (N, D), read block by block.

    Products are float32, their sums float64; rows are shifted by the mean of the first block, so
    that a common offset costs no digits.

    Args:
        unit: bring rows to unit length first.
        balanced: weigh each sample by ``1 / (n_c - 1)``, so that the scatter is the sum of the
            classes' unbiased covariances; a class of one adds nothing.
    """
    dimension = features.shape[1]
    counts = torch.from_numpy(np.bincount(labels, minlength=classes)).to(device)
    several = counts.double() - 1
    weights = torch.where(counts > 1, 1 / several.clamp_min(1), 0.0) if balanced else None
    gram = torch.zeros(dimension, dimension, dtype=torch.float64, device=device)
    sums = torch.zeros(classes, dimension, dtype=torch.float64, device=device)
    shift: Tensor | None = None
    for start in range(0, len(labels), _ROWS):
        rows = torch.from_numpy(features[start : start + _ROWS]).to(device).float()
        own = torch.from_numpy(labels[start : start + _ROWS]).to(device)
        if unit:
            rows = unit_rows(rows)
        if shift is None:
            shift = rows.mean(0)
        rows = rows - shift
        sums.index_add_(0, own, rows.double())
        scaled = rows if weights is None else rows * weights[own].float().unsqueeze(1)
        gram += scaled.T @ rows
    assert shift is not None
    number = counts.double().clamp_min(1).unsqueeze(1)
    means = sums / number
    of_class = counts.double() if weights is None else weights * counts
    gram -= (means * of_class.unsqueeze(1)).T @ means
    scatter = (gram + gram.T) / 2
    return Moments(means + shift.double(), scatter, counts)


def shrunk(covariance: Tensor, share: float) -> Tensor:
    """Return ``(1 - share) S + share tr(S) / D I`` of a covariance (D, D).

    A covariance of nothing but zeros, as of classes of one sample, becomes the identity.
    """
    mean = covariance.diagonal().mean()
    whole = torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device)
    if mean <= 0:
        return whole
    return (1 - share) * covariance + share * mean * whole
