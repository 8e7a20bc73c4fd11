"""Heads on cached features against derivations of their own: loops in float64, scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch.nn import functional as F

from ltpipe.artifacts.job import Job
from ltpipe.features.store import FeatureStore
from ltpipe.losses.reweight import BinarySoftmaxLoss
from ltpipe.losses.smoothing import LabelSmoothingLoss
from ltpipe.losses.softmax import CrossEntropyLoss
from ltpipe.losses.weights import effective_number_weights, powered_frequency_weights
from ltpipe.stage2.core.choosing import fit_chosen
from ltpipe.stage2.core.fit import Recipe, fit
from ltpipe.stage2.core.heads import AutogradModel
from ltpipe.stage2.core.logit_gradients import logit_gradient
from ltpipe.stage2.core.moments import class_moments, shrunk
from ltpipe.stage2.core.results import read_predictions
from ltpipe.stage2.heads import (
    balpoe,
    disalign,
    gda,
    gla,
    knn,
    latent_synthesis,
    logistic,
    marc,
    tip_adapter,
    weight_balancing,
)
from ltpipe.stage2.simple import classifier
from ltpipe.testing import check_method, make_store

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("store")
    make_store(made, 0)
    return made


def scores_of(module, folder, output, **settings):
    """A method's probabilities on the test set."""
    kind = {"kind": module.__name__.rsplit(".", 1)[1].replace("_", "-"), **settings}
    spec = {"method": kind, "groups": "ranks", "seed": 3}
    output.mkdir(exist_ok=True)
    module.run(Job(spec, {"features.features": folder}, output, CPU))
    return read_predictions(output).scores


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("classifier", {"weight_decay": [0.0, 0.1], "learning_rate": [0.1, 0.01]}),
        ("classifier", {"weight_decay": [0.0, 1.0], "select": "validation"}),
        ("classifier", {"initial": "linear", "loss": {"name": "label-smoothing"}, "epochs": 2}),
        ("tau-norm", {"initial": "linear"}),
        ("logit-adjusted", {"initial": "linear", "tau": [0.0, 1.0]}),
        ("lws", {"initial": "linear"}),
        ("weight-balancing", {"max_norm": [0.1, 0.9], "select": "none", "objective": "softmax"}),
        ("gda", {"covariance": "class-mean", "shrinkage": "auto", "alpha": [0.1, 1.0]}),
        ("knn", {"votes": "balanced", "neighbours": [1, 1000], "select": "none"}),
        ("marc", {"learning_rate": [0.01, 0.1], "select": "validation"}),
        ("tip-adapter", {"epochs": 2, "alpha": [1.0, 3.0], "beta": 1.0}),
        ("disalign", {"form": "mix", "rows": "plain", "initial": "linear"}),
        ("balpoe", {"mixup": 0.0, "learning_rate": [0.1, 0.3]}),
        ("tip-adapter", {"votes": "sum", "keys": 2, "views": "plain", "select": "none"}),
        ("gla", {"learning_rate": [0.01, 0.1], "select": "none"}),
        ("logistic", {"classes": "balanced", "strength": 0.01}),
    ],
)
def test_heads_keep_their_promises_in_other_settings(kind, settings, tmp_path):
    check_method(kind, tmp_path, **settings)


def test_decays_of_sweep_points_are_those_of_torch():
    stream = torch.Generator().manual_seed(0)
    inputs = torch.randn((3, 8, 4), generator=stream)
    target = torch.randint(0, 3, (3, 8), generator=stream)
    start = torch.randn((3, 4), generator=stream)
    decays, rates = (0.0, 0.1, 0.5), (0.1, 0.2, 0.3)
    recipe = Recipe(2, 8, rates, "constant", 0.9, decays)
    model = AutogradModel(
        lambda p, x: torch.einsum("gbd,pcd->gbpc", x, p["weight"]),
        logit_gradient(CrossEntropyLoss()),
        ("weight",),
    )
    batches = [(x[None], y[None]) for x, y in zip(inputs, target, strict=True)]
    fitted = fit({"weight": start.repeat(3, 1, 1)}, model, lambda epoch: iter(batches), recipe)
    for place, (decay, rate) in enumerate(zip(decays, rates, strict=True)):
        weight = start.clone().requires_grad_()
        optimiser = torch.optim.SGD([weight], rate, momentum=0.9, weight_decay=decay)
        for _ in range(2):
            for x, y in zip(inputs, target, strict=True):
                optimiser.zero_grad()
                F.cross_entropy(x @ weight.T, y).backward()
                optimiser.step()
        torch.testing.assert_close(fitted["weight"][place], weight.detach())


def test_a_chosen_setting_is_the_best_on_held_out_samples(folder, tmp_path):
    grid = [1e-4, 0.5, 3.0]
    common = {"loss": {"name": "ce"}, "weight_decay": grid, "views": "plain", "epochs": 3}
    held_out = FeatureStore.open(folder / "val.h5")
    spec = {"groups": "ranks", "seed": 3}
    job = Job(
        {**spec, "method": {"kind": "classifier", "select": "validation", **common}},
        {"features.features": folder},
        tmp_path,
        CPU,
    )
    facts = classifier.run(job)
    shown = scores_of(classifier, folder, tmp_path / "all", **common)
    assert shown.shape[0] == len(grid)
    from safetensors.torch import load_file

    every = load_file(tmp_path / "all/models.safetensors")
    means = []
    for place in range(len(grid)):
        z = held_out.features @ every["weight"][place].numpy().T + every["bias"][place].numpy()
        right = z.argmax(1) == held_out.labels
        means.append(np.mean([right[held_out.labels == c].mean() for c in range(5)]))
    best = [value for value, mean in zip(grid, means, strict=True) if mean == max(means)]
    assert facts["chosen"]["weight_decay"] == best[len(best) // 2]
    assert facts["protocol"] == "best_val"


def test_label_over_smoothing_at_the_origin_and_at_its_optimum():
    loss = LabelSmoothingLoss(0.98)
    z = torch.zeros(1, 4, requires_grad=True)
    loss(z, torch.tensor([0])).backward()
    np.testing.assert_allclose(z.grad[0], [-0.015, 0.005, 0.005, 0.005], atol=1e-7)
    for classes, gap in ((10, 0.185717), (100, 1.112126), (1000, 3.063772)):
        z = torch.zeros(1, classes, dtype=torch.float64)
        z[0, 0] = gap
        z.requires_grad_()
        loss(z, torch.tensor([0])).backward()
        np.testing.assert_allclose(z.grad[0], 0, atol=1e-7)


def test_weight_balancing_loss_bound_and_projection():
    counts = [100, 10, 1]
    np.testing.assert_allclose(
        effective_number_weights(counts), [0.027159, 0.270369, 2.702472], atol=1e-6
    )
    loss = BinarySoftmaxLoss(counts)
    z = torch.tensor([[2.0, 0.0, -1.0]])
    assert float(loss(z, torch.tensor([0]))) == pytest.approx(0.003024, abs=1e-6)
    assert float(loss(z, torch.tensor([2]))) == pytest.approx(4.637163, abs=1e-5)
    assert math.isfinite(float(loss(1000 * z, torch.tensor([0]))))
    weight = torch.tensor([[3.0, 4.0], [1.0, 0.0], [0.0, 2.0]])
    delta = weight_balancing.bound(weight, 0.1)
    assert delta == pytest.approx(1.4)
    rows = weight[None].clone()
    weight_balancing.project(rows, torch.tensor([delta]))
    np.testing.assert_allclose(rows[0], [[0.84, 1.12], [1, 0], [0, 1.4]], atol=1e-6)


def test_rows_of_balanced_weights_stay_within_the_bound(folder, tmp_path):
    from safetensors.torch import load_file

    settings = {"weight_decay": 1e-3, "learning_rate": 1.0, "views": "plain", "epochs": 2}
    scores_of(weight_balancing, folder, tmp_path, **settings)
    weight = load_file(tmp_path / "models.safetensors")["weight"][0]
    start = torch.from_numpy(FeatureStore.open(folder / "train.h5").classifier_weight)
    assert float(weight.norm(dim=1).max()) <= weight_balancing.bound(start, 0.1) * (1 + 1e-6)


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("unit", [False, True])
def test_moments_are_those_of_loops(balanced, unit, monkeypatch):
    monkeypatch.setattr("ltpipe.stage2.core.moments._ROWS", 7)
    stream = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2, 3], [12, 6, 2, 1])
    stream.shuffle(labels)
    features = (stream.normal(size=(21, 5)) + 3).astype(np.float32)
    found = class_moments(features, labels, 4, CPU, unit=unit, balanced=balanced)
    rows = features.astype(np.float64)
    if unit:
        rows = np.array([row / math.sqrt(sum(v * v for v in row)) for row in rows])
    scatter = np.zeros((5, 5))
    for c in range(4):
        own = rows[labels == c]
        np.testing.assert_allclose(found.means[c], own.mean(0), rtol=1e-6)
        for row in own:
            outer = np.outer(row - own.mean(0), row - own.mean(0))
            scatter += outer / max(len(own) - 1, 1) if balanced else outer
    np.testing.assert_allclose(found.scatter, scatter, rtol=1e-5, atol=1e-5)


def test_gaussians_of_two_classes_by_hand():
    features = np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]], np.float32)
    moments = class_moments(features, np.array([0, 0, 1, 1]), 2, CPU)
    covariance = moments.scatter / 3
    np.testing.assert_allclose(covariance, np.diag([0, 4 / 3]), atol=1e-7)
    weight, bias = gda.discriminants(moments.means, covariance, 0.4)
    # The published precision is 0.4 of this one; its rows are +-1.5 and biases -1.443147 + log 2.
    np.testing.assert_allclose(0.4 * weight, [[1.5, 0], [-1.5, 0]], atol=1e-6)
    np.testing.assert_allclose(0.4 * bias, [math.log(2) - 1.443147] * 2, atol=1e-6)
    np.testing.assert_array_equal(shrunk(torch.zeros(2, 2), 0.5), np.eye(2))


@pytest.mark.parametrize(("share", "covariance"), [(0.05, "pooled"), (0.7, "class-mean")])
def test_gda_is_the_gaussian_posterior(folder, tmp_path, share, covariance):
    found = scores_of(gda, folder, tmp_path, shrinkage=share, covariance=covariance)[0]
    train, test = (FeatureStore.open(folder / f"{part}.h5") for part in ("train", "test"))
    units = train.features.astype(np.float64)
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    means = np.array([units[train.labels == c].mean(0) for c in range(5)])
    centred = units - means[train.labels]
    if covariance == "pooled":
        s = sum(np.outer(row, row) for row in centred) / (len(units) - 5)
    else:
        s = np.mean([np.cov(units[train.labels == c].T) for c in range(5)], axis=0)
    s = (1 - share) * s + share * np.trace(s) / 8 * np.eye(8)
    tested = test.features / np.linalg.norm(test.features, axis=1, keepdims=True)
    logs = np.array(
        [[-0.5 * (x - m) @ np.linalg.solve(s, x - m) for m in means] for x in tested.astype(float)]
    )
    posterior = np.exp(logs - logs.max(1, keepdims=True))
    posterior /= posterior.sum(1, keepdims=True)
    np.testing.assert_allclose(found, posterior, atol=2e-4)


def test_neighbours_vote_as_scikit_learns_do(folder, tmp_path):
    train, test = (FeatureStore.open(folder / f"{part}.h5") for part in ("train", "test"))
    for number, near in ((0, 1), (1, 7)):
        found = scores_of(knn, folder, tmp_path / str(number), neighbours=near)[0]
        theirs = KNeighborsClassifier(
            near, weights=lambda d: np.exp(-d / 0.07), metric="cosine", algorithm="brute"
        )
        theirs.fit(train.features, train.labels)
        np.testing.assert_allclose(found, theirs.predict_proba(test.features), atol=1e-3)


def test_logistic_regression_folds_its_standardisation_in(folder, tmp_path):
    train, test = (FeatureStore.open(folder / f"{part}.h5") for part in ("train", "test"))
    found = scores_of(logistic, folder, tmp_path, strength=0.1)[0]
    theirs = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=200))
    theirs.fit(train.features.astype(np.float64), train.labels)
    np.testing.assert_allclose(found, theirs.predict_proba(test.features), atol=1e-4)


def gradient_by_loops(loss, parameters, names):
    """The gradient of a float64 loss by central differences."""
    found = {}
    for name in names:
        value = parameters[name]
        gradient = torch.zeros_like(value)
        for place in np.ndindex(*value.shape):
            step = 1e-5
            old = value[place].item()
            value[place] = old + step
            above = loss(parameters)
            value[place] = old - step
            below = loss(parameters)
            value[place] = old
            gradient[place] = (above - below) / (2 * step)
        found[name] = gradient
    return found


def test_margins_of_marc():
    frozen = torch.tensor([[3.0, 1.0]])
    weight = torch.tensor([[3.0, 4.0], [1.0, 0.0]])
    ones, zeros = torch.ones(2), torch.zeros(2)
    assert torch.equal(marc.calibrated(frozen, ones, zeros, weight), frozen)
    moved = marc.calibrated(frozen, ones, torch.full((2,), -2.0), weight)
    np.testing.assert_allclose(moved, [[-7.0, -1.0]])
    np.testing.assert_allclose(
        powered_frequency_weights([100, 10, 1], 1.2), [0.011192, 0.177389, 2.811419], atol=1e-6
    )


@pytest.mark.parametrize("form", ["sum", "mix"])
def test_gradients_of_disalign_are_those_of_differences(form):
    settings = disalign.DisAlign(kind="disalign", backbones={"features": "a"}, form=form)
    stream = torch.Generator().manual_seed(1)

    def draw(*shape):
        return torch.randn(shape, generator=stream, dtype=torch.float64)

    start = {"weight": draw(3, 4), "bias": draw(3)}
    parameters = {
        "alpha": draw(2, 3),
        "beta": draw(2, 3),
        "direction": draw(2, 4),
        "offset": draw(2),
    }
    inputs, target = draw(1, 5, 4), torch.tensor([[0, 1, 2, 1, 0]])
    weights = powered_frequency_weights([20, 5, 2], 1.2).double()
    loss = CrossEntropyLoss()
    loss.reweight(weights)

    def value(given):
        total = 0.0
        for p in range(2):
            terms, shares = [], []
            for x, y in zip(inputs[0], target[0], strict=True):
                z = start["weight"] @ x + start["bias"]
                level = given["direction"][p] @ (x / x.norm()) + given["offset"][p]
                s = 1 / (1 + math.exp(-level))
                kept = z if form == "sum" else (1 - s) * z
                aligned = kept + s * (given["alpha"][p] * z + given["beta"][p])
                terms.append(weights[y] * (torch.logsumexp(aligned, 0) - aligned[y]))
                shares.append(weights[y])
            total += float(sum(terms) / sum(shares))
        return total

    model = AutogradModel(
        lambda p, x: disalign._aligned(settings, start, p, x),
        logit_gradient(loss),
        tuple(parameters),
    )
    found = model.gradients(parameters, inputs, target)
    for name, expected in gradient_by_loops(value, parameters, tuple(parameters)).items():
        torch.testing.assert_close(found[name], expected, rtol=1e-6, atol=1e-8)


def test_forms_of_disalign_at_full_confidence():
    z, one = torch.tensor([[2.0, -1.0]]), torch.ones(1, 1)
    same = (z, one, torch.ones(2), torch.zeros(2))
    assert torch.equal(disalign.align(*same, "sum"), 2 * z)
    assert torch.equal(disalign.align(*same, "mix"), z)


@pytest.mark.parametrize("mixup", [0.0, 0.4])
def test_gradients_of_experts_are_those_of_differences(mixup):
    stream = torch.Generator().manual_seed(2)
    inputs = torch.randn((1, 4, 3), generator=stream, dtype=torch.float64)
    weight = torch.randn((4, 3, 3), generator=stream, dtype=torch.float64)
    target = torch.tensor([[0, 2, 1, 0]])
    log_prior = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64).log()
    adjustments = torch.tensor([[0.0], [2.0]], dtype=torch.float64) * log_prior
    draws = np.random.default_rng(5)
    share, order = 1.0, np.arange(4)
    if mixup:
        share, order = draws.beta(mixup, mixup), draws.permutation(4)

    def value(given):
        total = 0.0
        for model in range(4):
            rows = given["weight"][model]
            for place in range(4):
                x = share * inputs[0, place] + (1 - share) * inputs[0, order[place]]
                z = 30 * (rows @ (x / x.norm())) / rows.norm(dim=1) + adjustments[model % 2]
                log = torch.log_softmax(z, 0)
                mixed = share * log[target[0, place]] + (1 - share) * log[target[0, order[place]]]
                total -= float(mixed) / 4
        return total

    model = balpoe.MixedExperts(adjustments, 30.0, mixup, 5)
    found = model.gradients({"weight": weight}, inputs, target)["weight"]
    expected = gradient_by_loops(value, {"weight": weight}, ("weight",))["weight"]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("experts", "expected"), [((0, 1, 2), 0.307692), ((1,), 0.307692), ((0, 1.25, 2.5), 0.204202)]
)
def test_a_product_of_perfect_experts_is_unbiased_where_tau_means_one(experts, expected):
    prior, posterior = np.array([0.9, 0.1]), np.array([0.8, 0.2])
    z = np.mean([np.log(posterior) - tau * np.log(prior) for tau in experts], axis=0)
    assert np.exp(z)[0] / np.exp(z).sum() == pytest.approx(expected, abs=1e-6)


def test_affinities_of_tip_adapter(folder, tmp_path):
    rows = torch.tensor([[0.8, 0.6], [0.5, math.sqrt(0.75)]])
    found = tip_adapter.affinities(rows, torch.tensor([[1.0, 0.0]]), torch.tensor(5.5))
    assert float(found[0]) == pytest.approx(0.332871, abs=1e-6)
    found = 1.17 * tip_adapter.affinities(rows, torch.tensor([[1.0, 0.0]]), torch.tensor(1.0))
    assert float(found[1]) == pytest.approx(0.709641, abs=1e-6)


@pytest.mark.parametrize("votes", ["sum", "mean"])
def test_tip_adapter_is_a_sum_over_keys(folder, tmp_path, votes):
    found = scores_of(tip_adapter, folder, tmp_path, votes=votes, alpha=2.0, beta=3.0)[0]
    train, test = (FeatureStore.open(folder / f"{part}.h5") for part in ("train", "test"))

    def unit(values):
        return values / np.linalg.norm(values, axis=-1, keepdims=True)

    keys = unit(train.standard_views().astype(np.float64).mean(0))
    text, rows = unit(train.text.astype(float)), unit(test.features.astype(float))
    logits = 10 * rows @ text.T
    for n, x in enumerate(rows):
        for key, label in zip(keys, train.labels, strict=True):
            share = train.class_counts[label] if votes == "mean" else 1
            logits[n, label] += 2 * math.exp(-3 * (1 - x @ key)) / share
    expected = np.exp(logits - logits.max(1, keepdims=True))
    expected /= expected.sum(1, keepdims=True)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_trained_keys_of_tip_adapter_are_those_of_loops(folder):
    train = FeatureStore.open(folder / "train.h5")
    settings = tip_adapter.TipAdapter(
        kind="tip-adapter",
        backbones={"features": "features"},
        alpha=5.0,
        votes="sum",
        views="plain",
        epochs=3,
        batch_size=len(train.labels),
        learning_rate=0.01,
    )
    job = Job({"seed": 0}, {}, folder, CPU)
    found = tip_adapter._fit(job, settings, train)["keys"][0]

    rows = train.features.astype(np.float64)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    text = train.text / np.linalg.norm(train.text, axis=1, keepdims=True)
    keys, hot = rows.copy(), np.eye(len(train.class_names))[train.labels]
    mean, square = np.zeros_like(keys), np.zeros_like(keys)
    for step in range(3):
        near = np.exp(-1.0 * (1 - rows @ keys.T))
        z = float(train.attributes["logit_scale"]) * rows @ text.T + 1.17 * near @ hot
        p = np.exp(z - z.max(1, keepdims=True))
        excess = (p / p.sum(1, keepdims=True) - hot) / len(rows)
        gradient = np.zeros_like(keys)
        for n, x in enumerate(rows):
            for k, label in enumerate(train.labels):
                gradient[k] += 1.17 * 1.0 * excess[n, label] * near[n, k] * x
        rate = 0.01 * (1 + math.cos(math.pi * step / 3)) / 2
        mean = 0.9 * mean + 0.1 * gradient
        square = 0.999 * square + 0.001 * gradient**2
        keys *= 1 - rate * 0.01
        unbiased = np.sqrt(square / (1 - 0.999 ** (step + 1))) + 1e-4
        keys -= rate * mean / (1 - 0.9 ** (step + 1)) / unbiased
    assert np.abs(keys - rows).max() > 1e-3
    np.testing.assert_allclose(found, keys, atol=1e-5)


def test_pretraining_priors_by_hand():
    def prior(s, labels, counts):
        return np.exp(gla.fit_prior(np.tile(s, (len(labels), 1)), np.array(labels), counts, 0.0))

    balanced = [0, 1] * 10
    np.testing.assert_allclose(prior(np.log([0.8, 0.2]), balanced, [10, 10]), [0.8, 0.2], atol=1e-6)
    skewed = [0] * 15 + [1] * 5
    # Without the sample's own prior q would take it up, inverted.
    np.testing.assert_allclose(prior(np.zeros(2), skewed, [10, 10]), [0.25, 0.75], atol=1e-6)
    np.testing.assert_allclose(prior(np.zeros(2), skewed, [15, 5]), [0.5, 0.5], atol=1e-6)


def test_an_estimated_prior_predicts_the_class_frequencies():
    stream = np.random.default_rng(0)
    logits = stream.normal(size=(300, 4)) + np.array([1.0, 0, 0, -1])
    labels = stream.choice(4, 300, p=[0.5, 0.3, 0.15, 0.05])
    counts = np.bincount(labels).tolist()
    u = gla.fit_prior(logits, labels, counts, 0.0)
    z = logits - u + np.log(np.array(counts) / 300)
    predicted = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    np.testing.assert_allclose(predicted.mean(0), np.array(counts) / 300, atol=1e-5)


def test_a_matching_temperature_makes_confidence_accuracy():
    stream = np.random.default_rng(1)
    logits = 8 * stream.normal(size=(400, 5))
    labels = np.where(stream.random(400) < 0.7, logits.argmax(1), stream.integers(0, 5, 400))
    t = gla.matching_temperature(logits, labels)
    p = np.exp(logits / t) / np.exp(logits / t).sum(1, keepdims=True)
    assert p.max(1).mean() == pytest.approx((logits.argmax(1) == labels).mean(), abs=1e-4)
    assert gla.matching_temperature(logits, logits.argmax(1)) == 0.01


def test_drawn_features_have_the_covariance_that_is_lent(folder):
    train = FeatureStore.open(folder / "train.h5")
    rare = int(np.argmin(train.class_counts))
    parts = []
    for seed in range(40):
        filled = latent_synthesis.fill_up(train, 1.0, neighbours=2, shrinkage=0.2, seed=seed)
        assert filled.class_counts[rare] == max(train.class_counts)
        np.testing.assert_array_equal(filled.features[: len(train.labels)], train.features)
        drawn = (filled.labels == rare) & (filled.index < 0)
        own = train.features[train.labels == rare]
        gaps = filled.features[drawn][:, None] - own[None]
        parts.append(gaps)
    # Which sample a draw starts from shows in its seed's stream alone, so the sum over samples is
    # held: Cov = Sigma + Cov of the class's own samples.
    drawn = np.concatenate([part + train.features[train.labels == rare] for part in parts])[:, 0]
    own = train.features[train.labels == rare].astype(np.float64)
    between = np.cov(own.T, bias=True)
    means = np.array([train.features[train.labels == c].mean(0) for c in range(5)])
    units = means / np.linalg.norm(means, axis=1, keepdims=True)
    frequent = np.argsort(-np.array(train.class_counts))[:3]
    near = sorted(frequent, key=lambda c: -float(units[c] @ units[rare]))[:2]
    lent = np.mean([np.cov(train.features[train.labels == c].T) for c in near], axis=0)
    lent = 0.8 * lent + 0.2 * np.trace(lent) / 8 * np.eye(8)
    spread = np.sqrt(np.diag(lent + between))
    error = (np.cov(drawn.T) - lent - between) / np.outer(spread, spread)
    # Of 2,280 draws a correlation's standard error is 0.021; fifty-sixth part of 36 entries.
    assert np.abs(error).max() < 5 * math.sqrt(2 / len(drawn))


def test_no_draws_are_the_plain_classifier(folder, tmp_path):
    common = {"views": "plain", "sampler": "shuffle", "epochs": 2, "loss": {"name": "ce"}}
    plain = scores_of(classifier, folder, tmp_path / "plain", **common)
    none = scores_of(latent_synthesis, folder, tmp_path / "none", target=0.0, **common)
    assert np.array_equal(plain, none)


def test_fits_that_need_no_choice_hold_nothing_out(folder, tmp_path):
    settings = gda.GDA(kind="gda", backbones={"features": "a"}, shrinkage=0.1)
    assert not settings.needs_validation() and settings.protocol() == "last"
    from ltpipe.stage2.core.one_backbone import Features

    train = FeatureStore.open(folder / "train.h5")
    weights, facts = fit_chosen(
        Job({}, {}, tmp_path, CPU),
        Features(settings, train, train),
        lambda given, store: {"n": torch.tensor([len(store.labels)])},
        gda.logits,
    )
    assert facts == {} and weights["n"] == len(train.labels)
