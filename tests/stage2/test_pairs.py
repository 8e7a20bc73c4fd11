"""Pairs of samples of different classes."""

from __future__ import annotations

import math

import pytest
import torch

from ltpipe.stage2.dlsa.pairs import class_pairs
from ltpipe.utils.errors import InputError

LABELS = torch.tensor([0] * 50 + [2] * 7 + [3] * 2 + [5])


def test_classes_and_samples_are_drawn_uniformly():
    number = 40000
    one, two = class_pairs(LABELS, 6, number, torch.Generator().manual_seed(0))
    first, second = LABELS[one], LABELS[two]
    assert (first != second).all()
    seen = torch.bincount(first * 6 + second, minlength=36)
    chance = 1 / 12
    for a in (0, 2, 3, 5):
        for b in (0, 2, 3, 5):
            expected = 0 if a == b else number * chance
            sigma = math.sqrt(number * chance * (1 - chance))
            assert abs(seen[6 * a + b].item() - expected) <= (0 if a == b else 4 * sigma)
    for positions, classes in ((one, first), (two, second)):
        within = torch.bincount(positions[classes == 2], minlength=len(LABELS))[50:57].double()
        sigma = (within.sum() / 7 * (6 / 7)).sqrt()
        assert ((within - within.sum() / 7).abs() < 4 * sigma).all()


def test_the_generator_decides():
    draws = [class_pairs(LABELS, 6, 20, torch.Generator().manual_seed(3)) for _ in range(2)]
    assert all(map(torch.equal, *draws))


def test_one_class_has_no_pairs():
    with pytest.raises(InputError, match="two classes"):
        class_pairs(torch.zeros(5, dtype=torch.int64), 3, 4, torch.Generator())
