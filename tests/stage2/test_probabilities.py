"""Calibration, label shift and sets, against closed forms, loops and simulations."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from ltpipe.stage2.core import calibration, conformal, label_shift
from ltpipe.utils.errors import InputError

COUNTS = [600, 300, 100]


def drawn(prior, number, seed=0, spread=1.5):
    """Features of Gaussian classes, with their exact log-likelihoods (N, C)."""
    stream = np.random.default_rng(seed)
    labels = stream.choice(len(prior), number, p=prior)
    centres = spread * np.eye(len(prior))
    x = centres[labels] + stream.normal(size=(number, len(prior)))
    return -0.5 * np.square(x[:, None] - centres).sum(2), labels


def nll(logs, labels):
    return -logs[np.arange(len(labels)), labels].mean()


def test_constant_logits_are_calibrated_to_the_frequencies(monkeypatch):
    monkeypatch.setattr(calibration, "_PRIOR", 0.0)
    labels = np.repeat([0, 1, 2], [6, 3, 1])
    logits = np.zeros((10, 3))
    scale, bias = calibration.calibrate(logits, labels, [6, 3, 1], "bcts")
    logs = calibration.calibrated(logits, scale, bias)
    np.testing.assert_allclose(np.exp(logs[0]), [0.6, 0.3, 0.1], atol=1e-5)
    assert nll(logs, labels) == pytest.approx(0.897946, abs=1e-6)


@pytest.mark.parametrize("form", calibration.FORMS)
def test_calibration_finds_what_a_grid_finds_no_better(form):
    prior = np.array(COUNTS) / sum(COUNTS)
    logs, labels = drawn(prior, 1500)
    truth = log_softmax(logs + np.log(prior), axis=1)
    sharp = 3 * truth
    scale, bias = calibration.calibrate(sharp, labels, COUNTS, form)
    found = calibration.calibrated(sharp, scale, bias)
    assert abs(nll(found, labels) - nll(truth, labels)) < 0.01
    if form == "temperature":
        assert np.ptp(scale) == 0 and not bias.any()
        best = min(nll(log_softmax(s * sharp, axis=1), labels) for s in np.geomspace(0.1, 2, 400))
        assert nll(found, labels) <= best + 1e-9


def test_a_balanced_head_gets_the_prior_back():
    prior = np.array(COUNTS) / sum(COUNTS)
    logs, labels = drawn(prior, 3000, seed=3)
    scale, bias = calibration.calibrate(log_softmax(logs, axis=1), labels, COUNTS, "class-size")
    found = calibration.calibrated(log_softmax(logs, axis=1), scale, bias)
    np.testing.assert_allclose(np.exp(found).mean(0), prior, atol=0.01)


def test_calibration_does_not_depend_on_the_order_of_samples():
    logs, labels = drawn([0.5, 0.3, 0.2], 200, seed=5)
    order = np.random.default_rng(0).permutation(200)
    for form in calibration.FORMS:
        one = calibration.calibrate(logs, labels, COUNTS, form)
        other = calibration.calibrate(logs[order], labels[order], COUNTS, form)
        np.testing.assert_allclose(one, other, atol=1e-4)


def test_the_prior_of_two_classes_by_hand():
    posteriors = np.array([[0.9, 0.1]] * 8 + [[0.1, 0.9]] * 2)
    source = np.array([0.5, 0.5])
    shares = [label_shift.estimated_prior(posteriors, source, iterations=n)[0] for n in (1, 2, 3)]
    np.testing.assert_allclose(shares, [0.74, 0.817994, 0.847310], atol=1e-6)
    q = label_shift.estimated_prior(posteriors, source, tolerance=1e-12)
    assert q[0] == pytest.approx(0.875, abs=1e-6)
    moved = label_shift.moved_posteriors(posteriors[:1], source, np.array([0.875, 0.125]))
    np.testing.assert_allclose(moved, [[0.984375, 0.015625]])
    same = label_shift.estimated_prior(posteriors, posteriors.mean(0))
    np.testing.assert_allclose(same, posteriors.mean(0), atol=1e-6)


def test_pseudo_counts_keep_classes_alive():
    posteriors = np.array([[1.0, 0.0]] * 5)
    assert label_shift.estimated_prior(posteriors, np.array([0.5, 0.5]))[1] < 1e-6
    kept = label_shift.estimated_prior(posteriors, np.array([0.5, 0.5]), pseudo_count=1.0)
    assert kept[1] == pytest.approx(1 / 7, abs=1e-6)
    lost = label_shift.moved_posteriors(posteriors, [0.5, 0.5], [0.0, 1.0])
    np.testing.assert_array_equal(lost, posteriors)


def test_shifted_sets_have_the_published_sizes():
    labels = np.repeat(np.arange(100), 100)
    counts = np.arange(100, 0, -1).tolist()
    total = {}
    for ratio in (2, 5, 10, 25, 50):
        forward = label_shift.shifted_places(labels, counts, ratio, "forward")
        backward = label_shift.shifted_places(labels, counts, ratio, "backward")
        sizes = np.bincount(labels[forward], minlength=100)
        assert np.bincount(labels[backward], minlength=100).tolist() == sizes[::-1].tolist()
        assert len(set(forward)) == len(forward)
        total[ratio] = len(forward)
    assert total == {2: 7166, 5: 4932, 10: 3876, 25: 2956, 50: 2486}
    assert [int(sizes[k]) for k in (0, 1, 50, 98, 99)] == [100, 96, 13, 2, 2]
    with pytest.raises(InputError, match="ratio"):
        label_shift.shifted_places(labels, counts, 101, "forward")
    with pytest.raises(InputError, match="direction"):
        label_shift.shifted_places(labels, counts, 2, "sideways")


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("ratio", [2, 10, 50])
def test_adaptation_comes_near_the_head_that_is_told_the_prior(direction, ratio):
    train = np.array([0.7, 0.2, 0.07, 0.03])
    held, held_labels = drawn(train, 1200, seed=1, spread=2.0)
    # A sharp head with the training prior.
    head = 2 * log_softmax(held + np.log(train), axis=1)
    scale, bias = calibration.calibrate(head, held_labels, (1000 * train).astype(int), "bcts")
    source = np.exp(calibration.calibrated(head, scale, bias)).mean(0)
    logs, labels = drawn([0.25] * 4, 8000, seed=2, spread=2.0)
    places = label_shift.shifted_places(labels, train.tolist(), ratio, direction)
    logs, labels = logs[places], labels[places]
    told = np.bincount(labels, minlength=4) / len(labels)
    given = np.exp(
        calibration.calibrated(2 * log_softmax(logs + np.log(train), axis=1), scale, bias)
    )
    q = label_shift.estimated_prior(given, source)
    np.testing.assert_allclose(q, told, atol=0.04)
    right = [
        (label_shift.moved_posteriors(given, source, prior).argmax(1) == labels).mean()
        for prior in (q, told, source)
    ]
    assert right[0] >= right[1] - 0.01
    if direction == "backward" and ratio == 50:
        assert right[0] > right[2] + 0.1


@pytest.mark.parametrize(
    ("number", "miss", "place"), [(35, 0.2, 29), (564, 0.1, 509), (9, 0.1, 9), (8, 0.1, None)]
)
def test_quantiles_count_samples(number, miss, place):
    scores = np.random.default_rng(0).permutation(number) + 1.0
    assert conformal.quantile(scores, miss) == (math.inf if place is None else place)


def test_weighted_quantiles_of_equal_weights_are_the_plain_ones():
    scores = np.random.default_rng(0).random(57)
    for miss in (0.05, 0.1, 0.3):
        assert conformal.weighted_quantile(scores, np.full(57, 0.2), miss) == conformal.quantile(
            scores, miss
        )
    assert conformal.weighted_quantile(scores[:8], np.ones(8), 0.1) == math.inf


def test_prevalence_reverses_the_order_of_a_tail():
    p = np.array([[0.7, 0.2, 0.1]])
    scores = conformal.scores_of(p, "prevalence", [90, 9, 1])
    np.testing.assert_allclose(1 + scores, [[0.222222, -1.222222, -9]], atol=1e-6)
    np.testing.assert_allclose(conformal.scores_of(p, "standard", [90, 9, 1]), 1 - p)


def test_plans_of_clusters():
    plans = [conformal.cluster_plan(k, n) for k, n in ((100, 10), (100, 20), (1000, 50))]
    assert plans == [(5, 2), (11, 5), (46, 23)]


def simulated(number, prior, seed):
    logs, labels = drawn(prior, number, seed=seed)
    return softmax(logs + np.log(prior), axis=1), labels


@pytest.mark.parametrize("rule", conformal.RULES)
def test_sets_keep_their_promise(rule):
    prior = np.array([0.6, 0.3, 0.1])
    found = []
    for seed in range(20):
        held, held_labels = simulated(400, prior, seed)
        limits = conformal.thresholds(held, held_labels, COUNTS, 0.9, rule)
        given, labels = simulated(4000, prior, 1000 + seed)
        sets = conformal.members(given, limits, COUNTS, rule)
        metrics = conformal.set_metrics(sets, labels)
        by_class = [sets[labels == c, c].mean() for c in range(3)]
        assert metrics["macro_coverage"] == pytest.approx(np.mean(by_class))
        assert metrics["set_size"] == pytest.approx(sets.sum() / len(labels))
        found.append([metrics["coverage"], metrics["macro_coverage"]])
    marginal, macro = np.mean(found, axis=0)
    # Standard errors of the mean of 20 draws are below 0.01.
    if rule in ("balanced", "classwise"):
        assert macro > 0.89
    else:
        assert marginal > 0.88


def test_classes_with_few_samples_are_in_every_set():
    held, labels = simulated(200, np.array([0.7, 0.29, 0.01]), 1)
    limits = conformal.thresholds(held, labels, COUNTS, 0.9, "classwise")
    assert math.isinf(limits[2]) and np.isfinite(limits[:2]).all()
    between = conformal.thresholds(held, labels, COUNTS, 0.9, "interpolated", share=0.5)
    common = conformal.thresholds(held, labels, COUNTS, 0.9, "standard")[0]
    assert between[2] == pytest.approx(0.5 + 0.5 * common)
    for given, message in (((held, labels, COUNTS, 1.5, "standard"), "coverage"),):
        with pytest.raises(InputError, match=message):
            conformal.thresholds(*given)


def test_clusters_share_quantiles():
    stream = np.random.default_rng(0)
    labels = np.repeat(np.arange(40), 60)
    # Two kinds of classes: their true scores lie around 0.2 and 0.7.
    own = np.where(labels % 2 == 0, 0.2, 0.7) + 0.1 * stream.random(len(labels))
    limits = conformal._clustered(own, labels, 40, 0.1, 0)
    assert limits[::2].max() < 0.35 and limits[1::2].min() > 0.7
