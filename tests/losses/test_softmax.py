from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from ltpipe.losses.softmax import BalancedSoftmaxLoss, CrossEntropyLoss, LogitAdjustedLoss
from ltpipe.utils.errors import InputError

COUNTS = [7, 120, 31, 2]
TARGET = [1, 1, 3, 0, 2, 1]


@pytest.fixture
def logits() -> np.ndarray:
    return np.random.default_rng(0).normal(0, 3, (6, 4))


def probability(row: np.ndarray, label: int, prior: Sequence[float]) -> float:
    parts = [p * math.exp(value) for p, value in zip(prior, row, strict=True)]
    return parts[label] / sum(parts)


def test_cross_entropy(logits: np.ndarray) -> None:
    values = [
        -math.log(probability(row, y, [1] * 4)) for row, y in zip(logits, TARGET, strict=True)
    ]
    result = CrossEntropyLoss()(torch.tensor(logits), torch.tensor(TARGET))
    assert result.item() == pytest.approx(sum(values) / 6, abs=1e-12)


def test_weighted_cross_entropy_divides_by_the_weights_of_the_batch(logits: np.ndarray) -> None:
    weight = [0.5, 0.25, 1.0, 2.25]
    total = sum(
        -weight[y] * math.log(probability(row, y, [1] * 4))
        for row, y in zip(logits, TARGET, strict=True)
    )
    loss = CrossEntropyLoss(torch.tensor(weight))
    result = loss(torch.tensor(logits), torch.tensor(TARGET))
    assert result.item() == pytest.approx(total / sum(weight[y] for y in TARGET), abs=1e-12)


def test_balanced_softmax_multiplies_each_class_by_its_count(logits: np.ndarray) -> None:
    values = [-math.log(probability(row, y, COUNTS)) for row, y in zip(logits, TARGET, strict=True)]
    result = BalancedSoftmaxLoss(COUNTS)(torch.tensor(logits), torch.tensor(TARGET))
    assert result.item() == pytest.approx(sum(values) / 6, abs=1e-6)


def test_balanced_softmax_of_equal_counts_is_cross_entropy(logits: np.ndarray) -> None:
    z, target = torch.tensor(logits), torch.tensor(TARGET)
    balanced = BalancedSoftmaxLoss([40] * 4)(z, target)
    torch.testing.assert_close(balanced, CrossEntropyLoss()(z, target))


def test_softmax_losses_leave_the_outputs_as_logits(logits: np.ndarray) -> None:
    z = torch.tensor(logits)
    assert torch.equal(BalancedSoftmaxLoss(COUNTS).logits(z), z)
    assert torch.equal(LogitAdjustedLoss(COUNTS).logits(z), z)


@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0, 2.5])
def test_logit_adjustment_multiplies_each_class_by_a_power_of_its_share(
    logits: np.ndarray, tau: float
) -> None:
    shares = [(n / sum(COUNTS)) ** tau for n in COUNTS]
    values = [-math.log(probability(row, y, shares)) for row, y in zip(logits, TARGET, strict=True)]
    result = LogitAdjustedLoss(COUNTS, tau)(torch.tensor(logits), torch.tensor(TARGET))
    assert result.item() == pytest.approx(sum(values) / 6, rel=1e-6)


def test_logit_adjustment_with_class_weights(logits: np.ndarray) -> None:
    weight = [0.5, 0.25, 1.0, 2.25]
    total = sum(
        -weight[y] * math.log(probability(row, y, COUNTS))
        for row, y in zip(logits, TARGET, strict=True)
    )
    loss = LogitAdjustedLoss(COUNTS, weight=torch.tensor(weight))
    result = loss(torch.tensor(logits), torch.tensor(TARGET))
    assert result.item() == pytest.approx(total / sum(weight[y] for y in TARGET), rel=1e-6)


@pytest.mark.parametrize("tau", [-0.5, float("nan")])
def test_negative_tau_is_refused(tau: float) -> None:
    with pytest.raises(InputError, match="tau must be at least 0"):
        LogitAdjustedLoss(COUNTS, tau)
