from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from ltpipe.losses.softmax import CrossEntropyLoss
from ltpipe.training.mixup import mixup, mixup_loss
from ltpipe.utils.errors import InputError


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_images_are_mixed_with_their_partners() -> None:
    images = torch.randn(7, 3, 4, 5, generator=generator(1), dtype=torch.float64)
    mixed, permutation, lam = mixup(images, generator(), alpha=1.0)
    assert sorted(permutation.tolist()) == list(range(7))
    assert 0 < lam < 1
    for i in range(7):
        expected = lam * images[i].numpy() + (1 - lam) * images[permutation[i]].numpy()
        np.testing.assert_allclose(mixed[i].numpy(), expected, atol=1e-14)


def test_same_generator_state_gives_the_same_mixture_and_the_next_another() -> None:
    images = torch.randn(8, 3, 2, 2, generator=generator(1))
    stream = generator()
    first, second = mixup(images, stream, 1.0), mixup(images, stream, 1.0)
    again = mixup(images, generator(), 1.0)
    assert torch.equal(first[0], again[0])
    assert first[2] == again[2]
    assert first[2] != second[2]


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_lam_follows_the_beta_distribution(alpha: float) -> None:
    stream, images = generator(5), torch.zeros(2, 1)
    draws = [mixup(images, stream, alpha)[2] for _ in range(2000)]
    assert stats.kstest(draws, stats.beta(alpha, alpha).cdf).pvalue > 0.01


def test_partners_are_uniform() -> None:
    stream, images = generator(6), torch.zeros(4, 1)
    partners = torch.stack([mixup(images, stream, 1.0)[1] for _ in range(2000)])
    for place in range(4):
        counts = torch.bincount(partners[:, place], minlength=4).numpy()
        assert stats.chisquare(counts).pvalue > 0.01


def test_channels_last_is_kept() -> None:
    images = torch.randn(4, 3, 6, 6).to(memory_format=torch.channels_last)
    mixed, _, _ = mixup(images, generator(), 1.0)
    assert mixed.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("alpha", [0.0, -1.0, math.nan])
def test_alpha_must_be_positive(alpha: float) -> None:
    with pytest.raises(InputError, match="alpha must be greater than 0"):
        mixup(torch.zeros(2, 1), generator(), alpha)


def test_loss_equals_cross_entropy_with_mixed_labels() -> None:
    logits = torch.randn(5, 3, generator=generator(2), dtype=torch.float64)
    target, permutation, lam = torch.tensor([0, 1, 2, 2, 0]), torch.tensor([1, 2, 3, 4, 0]), 0.3
    total = 0.0
    for row, a, b in zip(logits, target, target[permutation], strict=True):
        soft = np.zeros(3)
        soft[a] += lam
        soft[b] += 1 - lam
        total -= float(soft @ (row - row.exp().sum().log()).numpy())
    result = mixup_loss(CrossEntropyLoss(), logits, target, permutation, lam)
    assert result.item() == pytest.approx(total / 5, abs=1e-12)
