"""Momentum losses and memory scores: eqs. 8 and 9 against loops, and what they are for."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from ltpipe.stage2.ecvl.memory import Memory, memory_values

CPU = torch.device("cpu")


def scores(deviations, signed=False):
    values = torch.tensor(deviations) + 5.0
    return memory_values(values, torch.ones_like(values, dtype=torch.bool), signed=signed)


def test_eq_9_and_its_printed_form():
    torch.testing.assert_close(scores([-2.0, 1.0, 1.0]), torch.tensor([0.0, 0.75, 0.75]))
    # As printed the first is -1/2, and is cut off.
    torch.testing.assert_close(scores([-2.0, 1.0, 1.0], signed=True), torch.tensor([0.0, 1.0, 1.0]))
    torch.testing.assert_close(scores([0.0, 0.0, 0.0]), torch.full((3,), 0.5))


@pytest.mark.parametrize("seed", range(5))
def test_scores_lie_in_0_to_1_with_mean_one_half(seed):
    stream = torch.Generator().manual_seed(seed)
    losses = torch.rand(500, generator=stream) ** 3 * 10
    found = scores((losses - losses.mean()).tolist())
    assert found.min() >= 0
    assert found.max() <= 1
    assert found.mean() == pytest.approx(0.5, abs=1e-5)


def test_samples_that_were_never_measured_have_none_and_do_not_count():
    values = torch.tensor([1.0, 3.0, 99.0])
    known = torch.tensor([True, True, False])
    torch.testing.assert_close(memory_values(values, known), torch.tensor([0.0, 1.0, 0.0]))
    assert torch.equal(memory_values(values, torch.zeros(3, dtype=torch.bool)), torch.zeros(3))


def test_eq_8_against_a_loop():
    stream = np.random.default_rng(0)
    memory = Memory(2, 6, 0.9, signed=False, device=CPU)
    expected = np.full((2, 6), np.nan)
    assert torch.equal(memory.values(), torch.zeros(2, 6))
    for _ in range(5):
        noted = [[[] for _ in range(6)] for _ in range(2)]
        for _ in range(3):
            index = stream.integers(0, 5, (2, 4))  # Sample 5 is never drawn.
            losses = stream.random((2, 4))
            memory.add(torch.from_numpy(index), torch.from_numpy(losses).float())
            for point in range(2):
                for sample, loss in zip(index[point], losses[point], strict=True):
                    noted[point][sample].append(loss)
        memory.end_epoch()
        for point in range(2):
            for sample in range(6):
                if noted[point][sample]:
                    loss = np.mean(noted[point][sample])
                    old = expected[point, sample]
                    expected[point, sample] = loss if np.isnan(old) else 0.9 * old + 0.1 * loss
        known = ~np.isnan(expected)
        assert np.array_equal(memory.known.numpy(), known)
        np.testing.assert_allclose(memory.averages.numpy()[known], expected[known], rtol=1e-5)
    assert (memory.values()[:, 5] == 0).all()


def test_memory_rises_for_samples_whose_loss_stays_high():
    """Losses fall from 1 for all; those of the last ten samples stay."""
    memory = Memory(1, 100, 0.97, signed=False, device=CPU)
    index = torch.arange(100).unsqueeze(0)
    hard, easy = [], []
    for epoch in range(60):
        losses = torch.full((1, 100), 0.95**epoch)
        losses[0, 90:] = 1.0
        memory.add(index, losses)
        memory.end_epoch()
        found = memory.values()[0]
        hard.append(found[90:].mean().item())
        easy.append(found[:90].mean().item())
    assert hard[0] == easy[0] == 0.5
    assert all(high == pytest.approx(1.0) for high in hard[1:])
    assert all(low < 0.5 for low in easy[1:])
    # One whose loss starts to stay high later rises step by step.
    late = Memory(1, 100, 0.97, signed=False, device=CPU)
    path = []
    for epoch in range(60):
        losses = torch.linspace(0.1, 1.0, 100).unsqueeze(0).clone()
        if epoch >= 10:
            losses[0, 0] = 3.0
        late.add(index, losses)
        late.end_epoch()
        path.append(late.values()[0, 0].item())
    assert path[9] == pytest.approx(0.0)
    assert all(after >= before for before, after in itertools.pairwise(path[9:]))
    assert path[-1] > 0.9
