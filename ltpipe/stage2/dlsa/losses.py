"""What DLSA's filters minimise: weighted likelihood, balance and purity of clusters.

Xu et al., "Constructing Balance from Imbalance for Long-tailed Image Recognition", ECCV 2022,
section 3.3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ltpipe.utils.errors import InputError

_SMALLEST = 1e-7


def likelihood_weights(class_counts: Sequence[int], exponent: float = 2.0) -> Tensor:
    """Return ``n_c ** -q / sum n ** -q`` (eq. 6), float32 (C,); 0 for classes without a sample.

    Raises:
        InputError: no class has a sample.
    """
    counts = torch.tensor(class_counts, dtype=torch.float64)
    if not (counts > 0).any():
        raise InputError("likelihood weights need a class with samples; there is none")
    weights = torch.where(counts > 0, counts.clamp(min=1) ** -exponent, 0.0)
    return (weights / weights.sum()).float()


def weighted_likelihood_loss(
    log_likelihood: Tensor, target: Tensor, class_weights: Tensor
) -> Tensor:
    """Return ``-mean_i w_{y_i} log p(x_i)`` (eq. 7) of (B,), targets (B,) and weights (C,)."""
    return -(class_weights[target] * log_likelihood).mean()


class BalanceLoss(nn.Module):
    """The divergence of the clusters' mean posterior from equal shares (eq. 9, plus log K).

    The mean posterior is averaged over batches, ``p~ = eta p~ + (1 - eta) p`` from 0 and divided by
    ``1 - eta ** t``, so that it is unbiased from the first batch on; the gradient flows through the
    current batch. The average is kept in the state dict.

    Raises:
        InputError: `momentum` is outside [0, 1).
    """

    average: Tensor
    batches: Tensor

    def __init__(self, clusters: int, momentum: float = 0.7) -> None:
        super().__init__()
        if not 0 <= momentum < 1:
            raise InputError(f"momentum must be at least 0 and below 1, not {momentum:g}")
        self.momentum = momentum
        self.register_buffer("average", torch.zeros(clusters))
        self.register_buffer("batches", torch.zeros(()))

    def forward(self, posterior: Tensor) -> Tensor:
        """Return the scalar loss of posteriors (B, K), between 0 and log K."""
        share = (1 - self.momentum) * posterior.mean(0)
        average = self.momentum * self.average + share
        with torch.no_grad():
            self.average.copy_(average)
            self.batches += 1
        unbiased = average / (1 - self.momentum**self.batches)
        entropy = -(unbiased * torch.log(unbiased + _SMALLEST)).sum()
        return math.log(len(unbiased)) - entropy


def purity_loss(posterior: Tensor, log_other: Tensor, clamp: float | None = 1e-6) -> Tensor:
    """Return ``mean_i sum_k P(k | x_i) log P(k | x_j)`` (eq. 10) of pairs of different classes.

    It is minus a cross-entropy, so minimising it drives the clusters of two classes apart. The
    gradient flows through `log_other` alone. As printed, and in the released code, it has no
    bound; with `clamp` posteriors of x_j count as no smaller, and push no further.

    Args:
        posterior: P(k | x_i), (B, K).
        log_other: log P(k | x_j), (B, K).
    """
    if clamp is not None:
        log_other = log_other.clamp_min(math.log(clamp))
    return (posterior.detach() * log_other).sum(1).mean()
