"""The filters' losses against NumPy loops, and the momentum estimator in a simulation."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch

from ltpipe.stage2.dlsa.losses import (
    BalanceLoss,
    likelihood_weights,
    purity_loss,
    weighted_likelihood_loss,
)
from ltpipe.utils.errors import InputError


def posteriors(number: int, clusters: int, seed: int = 0) -> np.ndarray:
    z = np.random.default_rng(seed).normal(size=(number, clusters)) * 2
    powers = np.exp(z)
    return powers / powers.sum(1, keepdims=True)


def test_likelihood_weights_by_loops():
    counts = [100, 20, 5, 0]
    found = likelihood_weights(counts, 2.0).numpy()
    total = sum(n**-2 for n in counts if n)
    expected = [n**-2 / total if n else 0 for n in counts]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    np.testing.assert_allclose(likelihood_weights([7, 3], 0.0).numpy(), [0.5, 0.5])
    with pytest.raises(InputError, match="there is none"):
        likelihood_weights([0, 0])


def test_weighted_likelihood_by_loops():
    stream = np.random.default_rng(0)
    values, target = stream.normal(size=9) * 50, stream.integers(0, 3, 9)
    weights = [0.1, 0.2, 0.7]
    expected = -sum(weights[y] * v for y, v in zip(target, values, strict=True)) / 9
    found = weighted_likelihood_loss(
        torch.from_numpy(values), torch.from_numpy(target), torch.tensor(weights).double()
    )
    assert found.item() == pytest.approx(expected)


def test_balance_over_batches_by_loops():
    loss = BalanceLoss(5, 0.7).double()
    average = np.zeros(5)
    for t in range(1, 6):
        batch = posteriors(8, 5, seed=t)
        average = 0.7 * average + 0.3 * batch.mean(0)
        p = average / (1 - 0.7**t)
        expected = sum(x * math.log(x + 1e-7) for x in p) + math.log(5)
        assert loss(torch.from_numpy(batch)).item() == pytest.approx(expected)


def test_balance_goes_on_from_its_state_dict():
    loss = BalanceLoss(5, 0.7).double()
    average = np.zeros(5)
    for t in range(1, 4):
        loss(torch.from_numpy(posteriors(8, 5, seed=t)))
        average = 0.7 * average + 0.3 * posteriors(8, 5, seed=t).mean(0)
    resumed = BalanceLoss(5, 0.7).double()
    resumed.load_state_dict(loss.state_dict())
    batch = posteriors(8, 5, seed=4)
    p = (0.7 * average + 0.3 * batch.mean(0)) / (1 - 0.7**4)
    expected = sum(x * math.log(x + 1e-7) for x in p) + math.log(5)
    assert resumed(torch.from_numpy(batch)).item() == pytest.approx(expected)


def test_gradients_by_finite_differences():
    target, weights = torch.tensor([0, 2, 1]), torch.tensor([0.1, 0.2, 0.7]).double()
    values = torch.tensor([-3.0, 5.0, 40.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda v: weighted_likelihood_loss(v, target, weights), (values,)
    )
    one = torch.from_numpy(posteriors(3, 4))
    two = torch.from_numpy(posteriors(3, 4, seed=1)).requires_grad_()
    assert torch.autograd.gradcheck(lambda other: purity_loss(one, other.log()), (two,))
    loss = BalanceLoss(4).double()
    loss(one)
    assert torch.autograd.gradcheck(lambda p: copy.deepcopy(loss)(p), (two,))


def test_balance_is_0_for_equal_shares_and_log_k_for_one_cluster():
    even = torch.full((4, 8), 1 / 8, dtype=torch.float64)
    assert BalanceLoss(8).double()(even).item() == pytest.approx(0, abs=1e-5)
    one = torch.zeros(4, 8, dtype=torch.float64)
    one[:, 3] = 1
    assert BalanceLoss(8).double()(one).item() == pytest.approx(math.log(8), abs=1e-5)


def test_the_momentum_estimator_is_unbiased_from_the_first_batch_on():
    stream = np.random.default_rng(0)
    truth = np.array([0.5, 0.3, 0.2])
    for batches in (1, 2, 6):
        estimates = []
        for _ in range(2000):
            loss = BalanceLoss(3, 0.7).double()
            for _ in range(batches):
                drawn = np.eye(3)[stream.choice(3, size=4, p=truth)]
                loss(torch.from_numpy(drawn))
            estimates.append((loss.average / (1 - 0.7**batches)).numpy())
        spread = np.std(estimates, axis=0) / math.sqrt(len(estimates))
        assert (np.abs(np.mean(estimates, axis=0) - truth) < 4 * spread).all()


def test_the_balance_gradient_flows_through_the_current_batch_alone():
    loss = BalanceLoss(4, 0.5).double()
    first = torch.from_numpy(posteriors(3, 4)).requires_grad_()
    loss(first).backward()
    second = torch.from_numpy(posteriors(3, 4, seed=1)).requires_grad_()
    first.grad = None
    loss(second).backward()
    assert first.grad is None
    average = 0.5 * 0.5 * posteriors(3, 4).mean(0) + 0.5 * posteriors(3, 4, seed=1).mean(0)
    p = average / 0.75
    for b in range(3):
        for k in range(4):
            slope = (math.log(p[k] + 1e-7) + p[k] / (p[k] + 1e-7)) * 0.5 / 0.75 / 3
            assert second.grad[b, k].item() == pytest.approx(slope)


def test_purity_by_loops_and_its_gradient_through_one_side():
    one, two = posteriors(6, 4), posteriors(6, 4, seed=1)
    two[0] = [1, 0, 0, 0]
    expected = 0.0
    for a, b in zip(one, two, strict=True):
        expected += sum(p * math.log(max(q, 1e-6)) for p, q in zip(a, b, strict=True)) / 6
    left = torch.from_numpy(one).requires_grad_()
    right = torch.from_numpy(two).requires_grad_()
    found = purity_loss(left, right.log())
    assert found.item() == pytest.approx(expected)
    found.backward()
    assert left.grad is None
    for i in range(1, 6):
        for k in range(4):
            assert right.grad[i, k].item() == pytest.approx(one[i, k] / two[i, k] / 6)
    even = torch.full((3, 8), 1 / 8, dtype=torch.float64)
    assert purity_loss(even, even.log()).item() == pytest.approx(-math.log(8))


def test_purity_without_a_clamp_has_no_bound():
    one = torch.tensor([[0.5, 0.5]], dtype=torch.float64)
    logits = torch.tensor([[0.0, -900.0]], dtype=torch.float64, requires_grad=True)
    free = purity_loss(one, logits.log_softmax(1), None)
    assert free.item() == pytest.approx(-450)
    (slope,) = torch.autograd.grad(free, logits)
    assert slope[0].tolist() == pytest.approx([-0.5, 0.5])
    held = purity_loss(one, logits.log_softmax(1))
    assert held.item() == pytest.approx(0.5 * math.log(1e-6))
    (slope,) = torch.autograd.grad(held, logits)
    assert not slope.any()


def test_a_momentum_of_one_is_refused():
    with pytest.raises(InputError, match="below 1"):
        BalanceLoss(3, 1.0)
