from __future__ import annotations

import pytest

from ltpipe.training.schedules import learning_rate
from ltpipe.utils.errors import InputError


def test_cosine_of_the_published_fusion_stage() -> None:
    epochs = (0, 5, 10, 15, 20, 25, 29)
    expected = (0.002, 0.001866, 0.0015, 0.001, 0.0005, 0.000134, 0.000005)
    rates = [learning_rate("cosine", 0.002, epoch, 30) for epoch in epochs]
    assert rates == pytest.approx(expected, abs=1e-6)


def test_steps_of_the_published_ldam_schedule() -> None:
    """Epochs counted from 1: e/5 of the rate to 5, all of it to 160, 0.01 to 180, then 0.0001."""
    for number in range(1, 201):
        if number <= 5:
            expected = 0.1 * number / 5
        elif number <= 160:
            expected = 0.1
        elif number <= 180:
            expected = 0.1 * 0.01
        else:
            expected = 0.1 * 0.0001
        rate = learning_rate(
            "step", 0.1, number - 1, 200, warmup=5, milestones=[160, 180], factors=[0.01, 0.0001]
        )
        assert rate == pytest.approx(expected, rel=1e-12)


def test_a_factor_is_relative_to_the_initial_rate() -> None:
    rate = learning_rate("step", 0.1, 190, 200, milestones=[160, 180], factors=[0.01, 0.01])
    assert rate == pytest.approx(0.001)


def test_constant() -> None:
    rates = [learning_rate("constant", 0.3, epoch, 4, warmup=2) for epoch in range(4)]
    assert rates == pytest.approx([0.15, 0.3, 0.3, 0.3])


def test_cosine_counts_the_warm_up_as_part_of_its_curve() -> None:
    rates = [learning_rate("cosine", 1.0, epoch, 4, warmup=1) for epoch in range(4)]
    assert rates == pytest.approx([1.0, 0.5 + 0.5**0.5 / 2, 0.5, 0.5 - 0.5**0.5 / 2])


def test_unknown_kind_names_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean 'cosine'"):
        learning_rate("cosin", 0.1, 0, 10)


def test_milestones_without_factors_are_refused() -> None:
    with pytest.raises(InputError, match="2 milestones but 1 factors"):
        learning_rate("step", 0.1, 0, 10, milestones=[3, 6], factors=[0.1])


def test_a_warm_up_that_begins_at_a_share_of_the_rate() -> None:
    """BBN's scheduler: factor 1/3 (1 - e / 5) + e / 5 in the 1-based epoch e below 5."""
    rates = [
        learning_rate("constant", 0.1, epoch, 200, warmup=5, warmup_start=1 / 3)
        for epoch in range(6)
    ]
    assert rates == pytest.approx([0.1 * f for f in (7 / 15, 9 / 15, 11 / 15, 13 / 15, 1, 1)])
