from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch

from ltpipe.losses.margin import KPSLoss, LDAMLoss
from ltpipe.utils.errors import InputError

# CIFAR-10-LT training counts at imbalance 100 and 200.
CIFAR_100 = [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
CIFAR_200 = [5000, 2775, 1540, 854, 474, 263, 146, 81, 45, 25]
# Not sorted by count, with a tie.
UNSORTED = [31, 7, 120, 2, 31]
TARGET = [2, 3, 3, 0, 1, 4]


@pytest.fixture
def cosines() -> np.ndarray:
    return np.random.default_rng(1).uniform(-1, 1, (6, 5))


def cross_entropy(row: list[float], label: int) -> float:
    return math.log(sum(math.exp(value) for value in row)) - row[label]


def test_ldam_margins_of_cifar10() -> None:
    expected = [
        0.158114, 0.179697, 0.204238, 0.232091, 0.263829,
        0.299768, 0.340675, 0.387221, 0.440497, 0.5,
    ]  # fmt: skip
    np.testing.assert_allclose(LDAMLoss(CIFAR_100).margins, expected, atol=1e-6)


def ldam(cosines: np.ndarray, weight: list[float]) -> float:
    """The formula, sample by sample, with margin 0.4 and scale 20."""
    total = 0.0
    for row, y in zip(cosines, TARGET, strict=True):
        margin = 0.4 * (min(UNSORTED) / UNSORTED[y]) ** 0.25
        scores = [20 * (value - margin if c == y else value) for c, value in enumerate(row)]
        total += weight[y] * cross_entropy(scores, y)
    return total / sum(weight[y] for y in TARGET)


def test_ldam(cosines: np.ndarray) -> None:
    loss = LDAMLoss(UNSORTED, max_margin=0.4, scale=20)
    result = loss(torch.tensor(cosines), torch.tensor(TARGET))
    assert result.item() == pytest.approx(ldam(cosines, [1] * 5), rel=1e-6)


def test_ldam_with_class_weights(cosines: np.ndarray) -> None:
    weight = [0.2, 1.0, 0.1, 3.5, 0.2]
    loss = LDAMLoss(UNSORTED, max_margin=0.4, scale=20, weight=torch.tensor(weight))
    result = loss(torch.tensor(cosines), torch.tensor(TARGET))
    assert result.item() == pytest.approx(ldam(cosines, weight), rel=1e-6)


@pytest.mark.parametrize("make", [LDAMLoss, KPSLoss])
def test_weights_of_loss_and_rule_multiply(
    make: type[LDAMLoss] | type[KPSLoss], cosines: np.ndarray
) -> None:
    own, rule = [0.2, 1.0, 0.1, 3.5, 0.2], [2.0, 0.5, 1.0, 0.3, 1.2]
    formula = ldam if make is LDAMLoss else kps_weighted
    margin, scale = (0.4, 20) if make is LDAMLoss else (0.5, 12)
    loss = make(UNSORTED, max_margin=margin, scale=scale, weight=torch.tensor(own))
    loss.reweight(torch.tensor(rule))
    result = loss(torch.tensor(cosines), torch.tensor(TARGET))
    product = [a * b for a, b in zip(own, rule, strict=True)]
    assert result.item() == pytest.approx(formula(cosines, product), rel=1e-6)


def test_kps_constants_of_cifar10() -> None:
    loss = KPSLoss(CIFAR_200, max_margin=0.2, scale=15)
    stretch = [
        2.354368, 2.203861, 2.053333, 1.902616, 1.752125,
        1.60155, 1.451104, 1.300503, 1.150251, 1.0,
    ]  # fmt: skip
    margins = [
        0.084949, 0.097734, 0.110521, 0.123324, 0.136108,
        0.148899, 0.161679, 0.174473, 0.187236, 0.2,
    ]  # fmt: skip
    scales = [
        15.0, 17.25377, 19.50754, 21.766566, 24.023253,
        26.28188, 28.539243, 30.799991, 33.057908, 35.315515,
    ]  # fmt: skip
    np.testing.assert_allclose(loss.stretch, stretch, atol=1e-6)
    np.testing.assert_allclose(loss.margins, margins, atol=1e-6)
    # These come from the list reversed over the class index, which the truncation of counts to
    # whole images sets apart from a function of the count.
    np.testing.assert_allclose(loss.adjusted_scales, scales, rtol=5e-4)


def test_kps_reverses_the_list_where_counts_are_exactly_geometric() -> None:
    loss = KPSLoss([2000, 200, 20], max_margin=0.3, scale=10)
    stretch = np.array([math.log(50 * n / 20) / math.log(50) for n in (2000, 200, 20)])
    reversed_list = stretch[::-1]
    np.testing.assert_allclose(loss.adjusted_scales, 10 * reversed_list, rtol=1e-6)
    np.testing.assert_allclose(loss.margins, 0.3 * reversed_list / max(stretch), rtol=1e-6)


def kps(cosines: np.ndarray, adjusted: bool, weight: Sequence[float] = (1,) * 5) -> float:
    """The formula, sample by sample, with margin 0.5 and scale 12."""
    sizes = [math.log(50 * n / min(UNSORTED)) for n in UNSORTED]
    ratios = [size / min(sizes) for size in sizes]
    total = 0.0
    for row, y in zip(cosines, TARGET, strict=True):
        margin = 0.5 * (math.log(50 * max(UNSORTED)) - math.log(UNSORTED[y])) / max(sizes)
        scale = 12.0
        if adjusted:
            scale = min(max(12 * (max(ratios) + min(ratios) - ratios[y]), 12), 50)
        scores = [
            scale * (ratios[c] * value - (margin if c == y else 0)) for c, value in enumerate(row)
        ]
        total += weight[y] * cross_entropy(scores, y)
    return total / sum(weight[y] for y in TARGET)


def kps_weighted(cosines: np.ndarray, weight: Sequence[float]) -> float:
    return kps(cosines, adjusted=False, weight=weight)


def test_kps(cosines: np.ndarray) -> None:
    loss = KPSLoss(UNSORTED, max_margin=0.5, scale=12)
    result = loss(torch.tensor(cosines), torch.tensor(TARGET))
    assert result.item() == pytest.approx(kps(cosines, adjusted=False), rel=1e-6)


def test_kps_adjusts_gradients_from_its_epoch_on(cosines: np.ndarray) -> None:
    loss = KPSLoss(UNSORTED, max_margin=0.5, scale=12, adjust_from=120)
    z, target = torch.tensor(cosines), torch.tensor(TARGET)
    for epoch, adjusted in ((0, False), (119, False), (120, True), (199, True), (3, False)):
        loss.on_epoch(epoch)
        assert loss(z, target).item() == pytest.approx(kps(cosines, adjusted), rel=1e-6)


def test_kps_never_adjusts_unless_asked(cosines: np.ndarray) -> None:
    loss = KPSLoss(UNSORTED, max_margin=0.5, scale=12)
    loss.on_epoch(10_000)
    result = loss(torch.tensor(cosines), torch.tensor(TARGET))
    assert result.item() == pytest.approx(kps(cosines, adjusted=False), rel=1e-6)


def test_kps_limits_the_adjusted_scale_to_50() -> None:
    assert KPSLoss([5000, 25], scale=30).adjusted_scales.tolist() == [30, 50]
    assert KPSLoss([5000, 25], scale=64).adjusted_scales.tolist() == [64, 64]


@pytest.mark.parametrize("make", [LDAMLoss, KPSLoss])
def test_a_class_keeps_its_loss_when_classes_change_places(
    make: type[LDAMLoss] | type[KPSLoss], cosines: np.ndarray
) -> None:
    order = torch.tensor([3, 0, 4, 2, 1])
    counts = torch.tensor(UNSORTED)
    z, target = torch.tensor(cosines), torch.tensor(TARGET)
    expected = make(counts)(z, target)
    moved = make(counts[order])(z[:, order], order.argsort()[target])
    torch.testing.assert_close(moved, expected)


@pytest.mark.parametrize(("make", "scale"), [(LDAMLoss, 30), (KPSLoss, 15)])
def test_logits_at_test_time_are_scaled_cosines(
    make: type[LDAMLoss] | type[KPSLoss], scale: float
) -> None:
    z = torch.tensor([[0.5, -1.0]])
    assert make([3, 2]).logits(z).tolist() == [[0.5 * scale, -scale]]


@pytest.mark.parametrize("make", [LDAMLoss, KPSLoss])
@pytest.mark.parametrize("setting", ["max_margin", "scale"])
@pytest.mark.parametrize("value", [0.0, -1.0, float("nan")])
def test_unusable_settings_are_refused(
    make: Callable[..., object], setting: str, value: float
) -> None:
    with pytest.raises(InputError, match=f"{setting} must be greater than 0"):
        make([3, 2], **{setting: value})
