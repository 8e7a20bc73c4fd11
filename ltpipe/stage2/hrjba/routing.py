"""How a sample finds its branch of the hybrid network, from the branches' logits."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

_TEMPERATURES = np.geomspace(0.05, 50, 241)


def fit_temperature(logits: Tensor, target: Tensor) -> float:
    """Return the temperature T under which ``softmax(logits / T)`` fits best, 1 without samples.

    The best of 241 between 0.05 and 50 in equal ratios; Guo et al., "On Calibration of Modern
    Neural Networks", ICML 2017, section 4.2.

    Args:
        logits: (n, c) of one branch on held-out samples of its classes.
        target: (n,) places among them.
    """
    if not len(target):
        return 1.0
    losses = [float(F.cross_entropy(logits.double() / t, target)) for t in _TEMPERATURES]
    return float(_TEMPERATURES[int(np.argmin(losses))])


def tempered(
    head: Tensor, tail: Tensor, temperatures: tuple[float | Tensor, float | Tensor], share: float
) -> Tensor:
    """Return log probabilities (N, h + t): head classes have 1 - `share`, tail classes `share`.

    Args:
        head, tail: (N, h) and (N, t) logits.
    """
    parts = [
        F.log_softmax(head / temperatures[0], 1) + math.log(1 - share),
        F.log_softmax(tail / temperatures[1], 1) + math.log(share),
    ]
    return torch.cat(parts, 1)


def energy_gap(
    head: Tensor, tail: Tensor, temperatures: tuple[float | Tensor, float | Tensor]
) -> Tensor:
    """Return the tail branch's free energy less the head branch's, ``T logsumexp(z / T)``: (N,)."""
    each = [
        temperature * torch.logsumexp(logits / temperature, 1)
        for logits, temperature in zip((head, tail), temperatures, strict=True)
    ]
    return each[1] - each[0]


def fit_bias(gap: Tensor, of_tail: Tensor) -> float:
    """Return b such that ``gap + b > 0`` tells tail from head best: the mean of both recalls.

    Of many equals, the middle; 0 where one group has no sample.

    Args:
        gap: (n,) of held-out samples; `of_tail` (n,) bool.
    """
    if not of_tail.any() or of_tail.all():
        return 0.0
    values = gap.double().sort().values
    cuts = torch.cat([values[:1] - 1, (values[1:] + values[:-1]) / 2, values[-1:] + 1])
    sent = gap.double().unsqueeze(1) > cuts
    recall = sent[of_tail].double().mean(0) + (~sent[~of_tail]).double().mean(0)
    equals = torch.isclose(recall, recall.max()).nonzero().squeeze(1)
    return -float(cuts[equals[len(equals) // 2]])
