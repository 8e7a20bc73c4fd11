"""Routing between two branches, against formulas written out in loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ltpipe.stage2.hrjba.groups import masked
from ltpipe.stage2.hrjba.job import Branches
from ltpipe.stage2.hrjba.routing import energy_gap, fit_bias, fit_temperature, tempered

HEAD = torch.tensor([[1.0, 2.0], [0.5, -1.0], [3.0, 3.0]], dtype=torch.float64)
TAIL = torch.tensor([[0.0, 1.0, 2.0], [4.0, 1.0, 0.0], [-1.0, 0.0, 0.5]], dtype=torch.float64)


def softmax(row):
    values = [math.exp(value) for value in row]
    return [value / sum(values) for value in values]


def test_tempered_probabilities_by_loops():
    found = tempered(HEAD, TAIL, (2.0, 0.5), 0.3)
    for row in range(3):
        head = [0.7 * p for p in softmax((HEAD[row] / 2).tolist())]
        tail = [0.3 * p for p in softmax((TAIL[row] / 0.5).tolist())]
        np.testing.assert_allclose(found[row].exp(), head + tail)
    np.testing.assert_allclose(found.exp().sum(1), 1)


def test_energies_by_loops():
    found = energy_gap(HEAD, TAIL, (2.0, 0.5))
    for row in range(3):
        head = 2 * math.log(sum(math.exp(z / 2) for z in HEAD[row].tolist()))
        tail = 0.5 * math.log(sum(math.exp(z / 0.5) for z in TAIL[row].tolist()))
        assert found[row].item() == pytest.approx(tail - head)


def test_the_bias_tells_the_groups_apart():
    gap = torch.tensor([-3.0, -2.0, -1.5, 0.5, 1.0])
    of_tail = torch.tensor([False, False, True, True, True])
    bias = fit_bias(gap, of_tail)
    assert ((gap + bias > 0) == of_tail).all()
    # Halfway between the two groups.
    assert bias == pytest.approx(1.75)


def test_the_bias_weighs_groups_and_not_samples():
    # One tail sample among many: sending all to the head is right for 9 of 10 and wrong for half.
    gap = torch.tensor([0.0, 1, 2, 3, 4, 5, 6, 7, 8, 4.5])
    of_tail = torch.tensor([False] * 9 + [True])
    bias = fit_bias(gap, of_tail)
    assert gap[9] + bias > 0
    assert (gap[:9] + bias > 0).sum() == 4


def test_a_bias_without_both_groups_is_none():
    assert fit_bias(torch.tensor([1.0, 2.0]), torch.tensor([True, True])) == 0
    assert fit_bias(torch.zeros(0), torch.zeros(0, dtype=torch.bool)) == 0


@pytest.mark.parametrize("true", [0.5, 1.0, 4.0])
def test_the_temperature_of_made_logits_is_found(true):
    stream = np.random.default_rng(0)
    logits = stream.normal(size=(20_000, 4)) * 2
    chances = np.exp(logits / true)
    chances /= chances.sum(1, keepdims=True)
    target = (chances.cumsum(1) < stream.random((20_000, 1))).sum(1)
    found = fit_temperature(torch.from_numpy(logits), torch.from_numpy(target))
    assert found == pytest.approx(true, rel=0.06)


def test_nothing_to_fit_leaves_the_temperature():
    assert fit_temperature(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64)) == 1


def test_joined_logits_stand_in_the_order_of_classes():
    branches = Branches((HEAD, TAIL), ([3, 1], [0, 2, 4]))
    found = branches.concatenated
    np.testing.assert_array_equal(found[0], [0, 2, 1, 1, 2])
    np.testing.assert_array_equal(found[1], [4, -1, 1, 0.5, 0])


def test_masked_logits_keep_the_group_that_a_sample_is_sent_to():
    logits = torch.arange(6.0).view(2, 3)
    tail = torch.tensor([False, True, True])
    found = masked(logits, tail, torch.tensor([True, False]))
    expected = [[-math.inf, 1, 2], [3, -math.inf, -math.inf]]
    np.testing.assert_array_equal(found, expected)
