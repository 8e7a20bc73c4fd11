from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from ltpipe.losses.smoothing import LabelAwareSmoothingLoss, LabelSmoothingLoss
from ltpipe.utils.errors import InputError

# Not sorted by count, with a tie.
COUNTS = [40, 3, 120, 3, 61]
TARGET = [2, 0, 1, 4, 3, 2, 2]
WEIGHT = [0.5, 2.0, 0.1, 1.7, 0.7]
# What of the way from tail to head a class goes, by its share t of the way from n_min to n_max.
RISE = {
    "concave": lambda t: math.sin(math.pi * t / 2),
    "linear": lambda t: t,
    "convex": lambda t: 1 + math.sin(math.pi * (t - 1) / 2),
}


@pytest.fixture
def logits() -> np.ndarray:
    return np.random.default_rng(4).normal(0, 3, (7, 5))


def by_hand(logits: np.ndarray, amounts: Sequence[float], weight: Sequence[float]) -> float:
    """Cross-entropy to the smoothed target distribution, entry by entry."""
    total = 0.0
    for row, y in zip(logits, TARGET, strict=True):
        partition = sum(math.exp(value) for value in row)
        for c, value in enumerate(row):
            wanted = amounts[y] / 5 + (1 - amounts[y]) * (c == y)
            total -= weight[y] * wanted * math.log(math.exp(value) / partition)
    return total / sum(weight[y] for y in TARGET)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.7])
def test_label_smoothing(logits: np.ndarray, smoothing: float) -> None:
    z, target = torch.tensor(logits), torch.tensor(TARGET)
    value = LabelSmoothingLoss(smoothing)(z, target)
    assert value.item() == pytest.approx(by_hand(logits, [smoothing] * 5, [1] * 5), abs=1e-12)
    torch.testing.assert_close(
        value, torch.nn.CrossEntropyLoss(label_smoothing=smoothing)(z, target)
    )


def test_label_smoothing_weighs_samples_by_their_class(logits: np.ndarray) -> None:
    loss = LabelSmoothingLoss(0.2, weight=torch.tensor(WEIGHT))
    value = loss(torch.tensor(logits), torch.tensor(TARGET))
    assert value.item() == pytest.approx(by_hand(logits, [0.2] * 5, WEIGHT), rel=1e-6)


@pytest.mark.parametrize("shape", RISE)
@pytest.mark.parametrize(("head", "tail"), [(0.3, 0.0), (0.4, 0.1), (0.2, 0.2)])
def test_label_aware_smoothing(logits: np.ndarray, shape: str, head: float, tail: float) -> None:
    amounts = [tail + (head - tail) * RISE[shape]((n - 3) / (120 - 3)) for n in COUNTS]
    loss = LabelAwareSmoothingLoss(COUNTS, head, tail, shape)
    np.testing.assert_allclose(loss.smoothing, amounts, atol=1e-7)
    value = loss(torch.tensor(logits), torch.tensor(TARGET))
    assert value.item() == pytest.approx(by_hand(logits, amounts, [1] * 5), rel=1e-6)
    loss.reweight(torch.tensor(WEIGHT))
    value = loss(torch.tensor(logits), torch.tensor(TARGET))
    assert value.item() == pytest.approx(by_hand(logits, amounts, WEIGHT), rel=1e-6)


def test_shapes_go_from_tail_to_head_in_their_own_ways() -> None:
    between = {}
    for shape in RISE:
        tail, middle, head = LabelAwareSmoothingLoss([1, 51, 101], 0.4, 0.1, shape).smoothing
        assert (tail.item(), head.item()) == pytest.approx((0.1, 0.4))
        between[shape] = middle.item()
    assert between["linear"] == pytest.approx(0.25)
    assert between["concave"] == pytest.approx(0.1 + 0.3 * math.sqrt(0.5))
    assert between["convex"] == pytest.approx(0.1 + 0.3 * (1 - math.sqrt(0.5)))


@pytest.mark.parametrize("shape", RISE)
def test_equal_classes_are_all_head(logits: np.ndarray, shape: str) -> None:
    loss = LabelAwareSmoothingLoss([20] * 5, 0.3, 0.1, shape)
    value = loss(torch.tensor(logits), torch.tensor(TARGET))
    assert value.item() == pytest.approx(by_hand(logits, [0.3] * 5, [1] * 5), rel=1e-6)


@pytest.mark.parametrize("value", [-0.1, 1.0, float("nan")])
def test_amounts_outside_their_range_are_refused(value: float) -> None:
    with pytest.raises(InputError, match="smoothing must be at least 0 and below 1"):
        LabelSmoothingLoss(value)
    with pytest.raises(InputError, match="head must be at least 0 and below 1"):
        LabelAwareSmoothingLoss(COUNTS, head=value)
    with pytest.raises(InputError, match="tail must be at least 0 and below 1"):
        LabelAwareSmoothingLoss(COUNTS, head=0.5, tail=value)


def test_a_tail_above_the_head_is_refused() -> None:
    with pytest.raises(InputError, match=r"tail 0\.4 must not exceed head 0\.3"):
        LabelAwareSmoothingLoss(COUNTS, head=0.3, tail=0.4)


def test_unknown_shape_is_refused() -> None:
    with pytest.raises(InputError, match="did you mean 'convex'"):
        LabelAwareSmoothingLoss(COUNTS, shape="convx")
