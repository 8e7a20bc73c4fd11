"""The batched fit loop against lone models, autograd and NumPy loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from ltpipe.losses.margin import LDAMLoss
from ltpipe.losses.softmax import CrossEntropyLoss
from ltpipe.stage2.core import fit as fit_module
from ltpipe.stage2.core.batches import Draws, FusedBatches, SquashedRows, UnitRows
from ltpipe.stage2.core.fit import Recipe
from ltpipe.stage2.core.fit import fit as fit_models
from ltpipe.stage2.core.heads import CosineModel, LinearModel, cosines
from ltpipe.stage2.core.logit_gradients import logit_gradient
from ltpipe.training.schedules import learning_rate
from ltpipe.utils.seeding import generator

COUNTS = [40, 12, 5, 2]
LABELS = torch.repeat_interleave(torch.arange(4), torch.tensor(COUNTS))
RECIPE = Recipe(4, 16, 0.1, "cosine", 0.9, 2e-3)


def tables(seed, dtype=torch.float32, views=3):
    draws = generator(seed, "tables")
    return [torch.randn(views, len(LABELS), 6, generator=draws).to(dtype) for _ in range(2)]


def fused(seed, coefficients, dtype=torch.float32):
    kps, ce = tables(seed, dtype)
    draws = Draws(LABELS, len(kps), seed, classes=4, sampler="balanced")
    return FusedBatches(kps, ce, draws, torch.tensor(coefficients), batch_size=16)


def start(models):
    return torch.randn(4, 6, generator=generator(0, "start")).expand(models, -1, -1)


def fit(batches, models):
    model = CosineModel(logit_gradient(LDAMLoss(COUNTS)))
    return fit_models({"weight": start(models).clone()}, model, batches, RECIPE)["weight"]


# The size of what is updated in one pass: nothing here, everything.
@pytest.mark.parametrize("large", [1 << 17, 1])
def test_stacked_models_equal_lone_ones_trained_by_torch(large, monkeypatch):
    monkeypatch.setattr(fit_module, "_LARGE", large)
    coefficients = [0.0, 0.3, 1.0]
    batches = fused(5, coefficients)
    found = fit(batches, 3)
    loss = LDAMLoss(COUNTS)
    for place in range(3):
        weight = start(1)[0].double().requires_grad_()
        optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.9, weight_decay=2e-3)
        for epoch in range(RECIPE.epochs):
            optimizer.param_groups[0]["lr"] = 0.05 * (1 + np.cos(np.pi * epoch / RECIPE.epochs))
            for inputs, target in batches(epoch):
                value = loss(inputs[place].double() @ F.normalize(weight, dim=1).T, target[place])
                optimizer.zero_grad()
                value.backward()
                optimizer.step()
        torch.testing.assert_close(found[place].double(), weight.detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_stacked_points_equal_lone_runs(dtype):
    coefficients = [0.0, 0.5, 0.9]
    together = fit(fused(3, coefficients, dtype), 3)
    for place, coefficient in enumerate(coefficients):
        alone = fit(fused(3, [coefficient], dtype), 1)[0]
        torch.testing.assert_close(together[place], alone, rtol=1e-5, atol=1e-5)


def test_rates_of_sweep_points_and_factors_of_parameters():
    """Two points of two models each; the weight of the second point moves twice as fast."""
    draws = generator(1, "x")
    inputs, target = (
        torch.randn(1, 8, 6, generator=draws),
        torch.randint(4, (1, 8), generator=draws),
    )
    model = LinearModel(logit_gradient(CrossEntropyLoss()), ("weight", "bias"))
    zeros = {"weight": torch.zeros(4, 4, 6), "bias": torch.zeros(4, 4)}
    recipe = Recipe(1, 8, (0.1, 0.2), "constant", 0.9, 0.0, {"bias": 0.5})
    found = fit_models(zeros, model, lambda epoch: iter([(inputs, target)]), recipe)
    for name, factor in (("weight", 1.0), ("bias", 0.5)):
        slow, same, fast, _ = found[name]
        assert torch.equal(slow, same)
        torch.testing.assert_close(fast, 2 * slow)
        gradient = {"weight": inputs[0], "bias": torch.ones(8, 1)}[name]
        errors = torch.full((8, 4), 0.25) - F.one_hot(target[0], 4)
        expected = (-0.1 * factor * errors.T @ gradient / 8).view_as(slow)
        torch.testing.assert_close(slow, expected)


def test_fusing_unit_features_is_averaging_the_cosines():
    kps, ce = (table[0].double().numpy() for table in tables(0))
    weight = np.random.default_rng(0).normal(size=(4, 6))
    w1 = 0.3
    expected = np.empty((len(kps), 4))
    for i, (a, b) in enumerate(zip(kps, ce, strict=True)):
        for c, w in enumerate(weight):
            cos_kps = a @ w / np.linalg.norm(a) / np.linalg.norm(w)
            cos_ce = b @ w / np.linalg.norm(b) / np.linalg.norm(w)
            expected[i, c] = w1 * cos_kps + (1 - w1) * cos_ce
    rows = torch.arange(len(kps))
    units = [UnitRows(torch.from_numpy(table).float()).gather(rows) for table in (kps, ce)]
    found = cosines(torch.from_numpy(weight).float(), w1 * units[0] + (1 - w1) * units[1])
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)


def test_batches_are_class_balanced_and_draw_every_view():
    seen = torch.zeros(4)
    views = set()
    batches = fused(0, [1.0])
    units = F.normalize(tables(0)[0], dim=2)
    # Of a row of D numbers: the sum of squares and the root err by D / 2 + 1 units in the last
    # place, the reciprocal and the product by one each, here and in `F.normalize`.
    tolerance = 2 * (units.shape[2] / 2 + 3) * torch.finfo(units.dtype).eps
    for epoch in range(60):
        for inputs, target in batches(epoch):
            seen += torch.bincount(target[0], minlength=4)
            distances = (inputs[0][:, None, None] - units).norm(dim=3)
            assert distances.flatten(1).amin(1).max() < tolerance
            views |= set(distances.amin(2).argmin(1).tolist())
    share = seen / seen.sum()
    sigma = (0.25 * 0.75 / seen.sum()).sqrt()
    assert ((share - 0.25).abs() < 4 * sigma).all()
    assert views == {0, 1, 2}


def test_a_zero_feature_stays_zero():
    rows = UnitRows(torch.zeros(2, 3)).gather(torch.tensor([0, 1]))
    assert torch.equal(rows, torch.zeros(2, 3))


def test_squashed_rows_have_the_length_n_over_one_plus_n():
    table = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    rows = SquashedRows(table).gather(torch.tensor([0, 1]))
    torch.testing.assert_close(rows, torch.tensor([[0.5, 4 / 6], [0.0, 0.0]]))


def test_the_released_schedule():
    golden = {0: 0.002, 5: 0.001866, 10: 0.0015, 15: 0.001, 20: 0.0005, 25: 0.000134, 29: 0.000005}
    for epoch, rate in golden.items():
        assert learning_rate("cosine", 0.002, epoch, 30) == pytest.approx(rate, abs=6e-7)
