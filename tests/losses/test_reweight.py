from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ltpipe.config.backbones import Rule
from ltpipe.losses.reweight import ClassBalancedLoss, FocalLoss
from ltpipe.losses.softmax import CrossEntropyLoss
from ltpipe.losses.weights import effective_number_weights, inverse_frequency_weights
from ltpipe.training.rules import phases
from ltpipe.utils.errors import InputError

# CIFAR-10-LT training counts at imbalance 100.
CIFAR_100 = [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
TARGET = [1, 1, 3, 0, 2, 1]


@pytest.fixture
def logits() -> np.ndarray:
    return np.random.default_rng(2).normal(0, 3, (6, 4))


def test_effective_number_weights_of_cifar10() -> None:
    expected = [
        0.050611, 0.0769, 0.121134, 0.195037, 0.318805,
        0.52459, 0.868349, 1.442627, 2.409223, 3.992724,
    ]  # fmt: skip
    np.testing.assert_allclose(effective_number_weights(CIFAR_100), expected, atol=1e-6)


def test_inverse_frequency_weights_of_cifar10() -> None:
    expected = [
        0.040236, 0.067128, 0.112017, 0.186799, 0.311911,
        0.519851, 0.867166, 1.447356, 2.423885, 4.02365,
    ]  # fmt: skip
    np.testing.assert_allclose(inverse_frequency_weights(CIFAR_100), expected, atol=1e-6)


@pytest.mark.parametrize("beta", [0.0, 0.5, 0.99])
def test_effective_number_is_a_geometric_sum(beta: float) -> None:
    counts = [1, 4, 37]
    inverse = [1 / sum(beta**k for k in range(n)) for n in counts]
    expected = [3 * w / sum(inverse) for w in inverse]
    np.testing.assert_allclose(effective_number_weights(counts, beta), expected, rtol=1e-6)


def test_weights_near_beta_one_are_inverse_frequencies() -> None:
    weights = effective_number_weights(CIFAR_100, beta=1 - 1e-14)
    torch.testing.assert_close(weights, inverse_frequency_weights(CIFAR_100))


@pytest.mark.parametrize("beta", [-0.1, 1.0, float("nan")])
def test_beta_outside_its_range_is_refused(beta: float) -> None:
    with pytest.raises(InputError, match="beta must be at least 0 and below 1"):
        effective_number_weights([3, 2], beta)
    with pytest.raises(InputError, match="beta must be at least 0 and below 1"):
        ClassBalancedLoss([3, 2], beta)


@pytest.mark.parametrize("gamma", [0.5, 1, 2])
@pytest.mark.parametrize("weight", [None, [0.5, 0.25, 1.0, 2.25]])
def test_focal(logits: np.ndarray, gamma: float, weight: list[float] | None) -> None:
    factors = weight or [1.0] * 4
    total = 0.0
    for row, y in zip(logits, TARGET, strict=True):
        p = math.exp(row[y]) / sum(math.exp(value) for value in row)
        total += factors[y] * (1 - p) ** gamma * -math.log(p)
    loss = FocalLoss(gamma, None if weight is None else torch.tensor(weight))
    result = loss(torch.tensor(logits), torch.tensor(TARGET))
    assert result.item() == pytest.approx(total / sum(factors[y] for y in TARGET), abs=1e-12)


@pytest.mark.parametrize("gamma", [0.5, 1, 2])
@pytest.mark.parametrize("by_rule", [False, True])
def test_focal_as_the_code_of_ldam_has_it(logits: np.ndarray, gamma: float, by_rule: bool) -> None:
    weight = [0.5, 0.25, 1.0, 2.25]
    total = 0.0
    for row, y in zip(logits, TARGET, strict=True):
        weighted = -weight[y] * math.log(math.exp(row[y]) / sum(math.exp(v) for v in row))
        total += (1 - math.exp(-weighted)) ** gamma * weighted
    if by_rule:
        loss = FocalLoss(gamma, ldam_compat=True)
        loss.reweight(torch.tensor(weight))
    else:
        loss = FocalLoss(gamma, torch.tensor(weight), ldam_compat=True)
    z = torch.tensor(logits, requires_grad=True)
    result = loss(z, torch.tensor(TARGET))
    assert result.item() == pytest.approx(total / 6, abs=1e-12)
    assert torch.autograd.gradcheck(loss, (z, torch.tensor(TARGET)))


def test_the_code_of_ldam_differs_with_class_weights_only(logits: np.ndarray) -> None:
    z, target = torch.tensor(logits), torch.tensor(TARGET)
    weight = torch.tensor([0.5, 0.25, 1.0, 2.25])
    assert torch.equal(FocalLoss(2, ldam_compat=True)(z, target), FocalLoss(2)(z, target))
    as_there = FocalLoss(2, weight, ldam_compat=True)(z, target)
    assert not torch.isclose(as_there, FocalLoss(2, weight)(z, target), rtol=1e-3)


@pytest.mark.parametrize("beta", [0.0, 0.9, 0.9999])
def test_class_balanced(logits: np.ndarray, beta: float) -> None:
    counts = [37, 4, 1, 120]
    weight = [1 / sum(beta**k for k in range(n)) for n in counts]
    total = 0.0
    for row, y in zip(logits, TARGET, strict=True):
        total += weight[y] * -math.log(math.exp(row[y]) / sum(math.exp(value) for value in row))
    result = ClassBalancedLoss(counts, beta)(torch.tensor(logits), torch.tensor(TARGET))
    assert result.item() == pytest.approx(total / sum(weight[y] for y in TARGET), rel=1e-6)


def test_class_balanced_weights_of_cifar10() -> None:
    weight = ClassBalancedLoss(CIFAR_100).class_weights()
    assert weight is not None
    np.testing.assert_allclose(weight[[0, 5, 9]], [0.050611, 0.52459, 3.992724], atol=1e-6)


def test_focal_with_gamma_0_is_cross_entropy(logits: np.ndarray) -> None:
    z, target = torch.tensor(logits), torch.tensor(TARGET)
    weight = torch.tensor([0.5, 0.25, 1.0, 2.25])
    focal = FocalLoss(0, weight)(z, target)
    torch.testing.assert_close(focal, CrossEntropyLoss(weight)(z, target))


def test_negative_gamma_is_refused() -> None:
    with pytest.raises(InputError, match="gamma must be at least 0"):
        FocalLoss(-0.5)


@pytest.mark.parametrize("rule", ["rw", "cb-rw", "drw", "dcb"])
def test_focal_under_the_four_weightings_has_the_gradient_of_ldams_code(rule: str) -> None:
    """A NumPy loop over samples and classes; the batch's size divides, not the weights' sum."""
    counts = CIFAR_100
    weights = phases(Rule(name=rule), counts, 200)[-1].weights
    assert weights is not None
    rng = np.random.default_rng(7)
    # As a shuffled batch has them: mostly the large classes.
    labels = rng.choice(10, 128, p=np.array(counts) / sum(counts))
    logits = rng.normal(0, 2, (128, 10))
    expected = np.zeros_like(logits)
    for i, y in enumerate(labels):
        p = np.exp(logits[i]) / np.exp(logits[i]).sum()
        w = float(weights[y])
        loss = -w * math.log(p[y])
        # d/dl of (1 - exp(-l)) l, and dl/dz = w (p - onehot).
        slope = 1 - math.exp(-loss) + loss * math.exp(-loss)
        for c in range(10):
            expected[i, c] = slope * w * (p[c] - (c == y)) / 128
    z = torch.tensor(logits, requires_grad=True)
    loss_module = FocalLoss(1.0, ldam_compat=True)
    loss_module.reweight(weights)
    loss_module(z, torch.from_numpy(labels)).backward()
    assert z.grad is not None
    np.testing.assert_allclose(z.grad.numpy(), expected, rtol=0, atol=1e-6)
    # Divided by the weights' sum, as plain cross-entropy is, steps are several times larger.
    other = torch.tensor(logits, requires_grad=True)
    plain = FocalLoss(1.0)
    plain.reweight(weights)
    plain(other, torch.from_numpy(labels)).backward()
    assert other.grad is not None
    assert other.grad.abs().sum() > 2 * z.grad.abs().sum()
