"""The stack's weights against loops and another optimiser, and what its settings refuse."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.optimize import minimize

from ltpipe.config.experiment import resolve
from ltpipe.plan.entries import code_entries
from ltpipe.plan.layout import build_plan
from ltpipe.stage2.stacked.job import cross_fitted, fit_weights, pool
from ltpipe.utils.errors import InputError
from tests.config.test_experiment import CATALOGUE


def made(members=3, samples=40, classes=4, seed=0):
    """Log-probabilities of members that know more and less, on classes of different sizes."""
    stream = np.random.default_rng(seed)
    labels = np.sort(stream.choice(classes, samples, p=np.array([8, 4, 2, 1]) / 15))
    scores = stream.normal(size=(members, samples, classes))
    for member in range(members):
        scores[member, np.arange(samples), labels] += member
    scores *= np.array([1.0, 3.0, 0.5])[:members, None, None]
    logs = scores - np.log(np.exp(scores).sum(2, keepdims=True))
    return logs, labels


def loss_by_loops(weights, logs, labels, prior):
    members, samples, classes = logs.shape
    present = {int(label): int((labels == label).sum()) for label in labels}
    total = 0.0
    for i in range(samples):
        powers = []
        for c in range(classes):
            product = 1.0
            for m in range(members):
                product *= math.exp(logs[m, i, c]) ** weights[m]
            powers.append(product)
        chance = powers[labels[i]] / sum(powers)
        total -= math.log(chance) / (len(present) * present[int(labels[i])])
    for m in range(members):
        total += prior / samples * (weights[m] - 1 / members) ** 2
    return total


@pytest.mark.parametrize("prior", [0.1, 1.0, 30.0])
@pytest.mark.parametrize("seed", [0, 1])
def test_weights_are_the_optimum_that_another_method_finds_on_loops(prior, seed):
    logs, labels = made(seed=seed)
    found = fit_weights(logs, labels, prior)
    other = minimize(
        loss_by_loops,
        np.array([0.9, 0.2, 0.5]),
        (logs, labels, prior),
        method="SLSQP",
        bounds=[(0, None)] * 3,
        options={"ftol": 1e-13, "maxiter": 500},
    )
    assert found == pytest.approx(other.x, abs=2e-4)
    assert loss_by_loops(found, logs, labels, prior) <= other.fun + 1e-9


def test_a_member_that_misleads_gets_no_weight():
    logs, labels = made(members=2)
    wrong = np.log(np.full(logs.shape[1:], 0.02))
    wrong[np.arange(len(labels)), (labels + 1) % 4] = math.log(0.94)
    weights = fit_weights(np.stack([logs[1], wrong]), labels, prior=0.01)
    assert weights[1] == 0
    assert weights[0] > 0


def test_a_large_prior_gives_equal_weights():
    logs, labels = made()
    assert fit_weights(logs, labels, 1e9) == pytest.approx([1 / 3] * 3, abs=1e-6)


def test_one_member_twice_is_weighed_like_one_member():
    """Closed form: of equal members the pull splits the weight evenly."""
    logs, labels = made(members=1)
    twice = fit_weights(np.concatenate([logs, logs]), labels, prior=1e-6)
    alone = fit_weights(logs, labels, prior=1e-6)
    assert twice[0] == pytest.approx(twice[1], abs=1e-4)
    assert twice.sum() == pytest.approx(alone[0], abs=1e-3)


def test_every_class_counts_the_same():
    logs, labels = made()
    # Samples of the largest class three times over change nothing but the pull's share.
    again = np.concatenate([np.arange(len(labels)), *[np.flatnonzero(labels == 0)] * 2])
    prior = 0.5
    more = fit_weights(logs[:, again], labels[again], prior * len(again) / len(labels))
    assert more == pytest.approx(fit_weights(logs, labels, prior), abs=1e-5)


def test_the_pool_is_the_normalised_product_of_powers():
    logs, _ = made()
    weights = np.array([0.3, 0.0, 1.4])
    product = np.prod([np.exp(log) ** w for log, w in zip(logs, weights, strict=True)], axis=0)
    assert pool(logs, weights) == pytest.approx(product / product.sum(1, keepdims=True))


def test_cross_fitted_predictions_ignore_the_samples_own_label():
    logs, labels = made()
    before = cross_fitted(logs, labels, 1.0)
    assert before.sum(1) == pytest.approx(np.ones(len(labels)))
    order = np.argsort(labels, kind="stable")
    fold = np.empty(len(labels), int)
    fold[order] = np.arange(len(labels)) % 5
    for number in range(5):
        outside = fold != number
        expected = pool(logs[:, ~outside], fit_weights(logs[:, outside], labels[outside], 1.0))
        assert before[~outside] == pytest.approx(expected, abs=1e-12)


MEMBERS = {
    "ffn": {"kind": "ffn", "backbones": {"ce": "a", "kps": "b"}},
    "own": {"kind": "backbone-head", "backbones": {"features": "a"}},
}


def experiment(**changes):
    stack = {
        "kind": "stacked",
        "backbones": {"a": "resnet8-ce", "b": "resnet8-kps"},
        "members": MEMBERS,
        **changes,
    }
    return {
        "experiment": "x",
        "seeds": [0],
        "datasets": {"digits-lt": None},
        "methods": {"stack": stack},
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"members": {"own": MEMBERS["own"]}}, "members"),
        ({"backbones": {"a": "resnet8-ce"}}, "members.ffn: no role 'b'"),
        ({"backbones": {"a": "resnet8-ce", "b": "resnet8-kps", "c": "resnet8-ce"}}, "no member"),
        ({"members": {**MEMBERS, "ffn": {**MEMBERS["ffn"], "w1": [0.1, 0.2]}}}, "no sweep"),
        ({"members": {**MEMBERS, "ffn": {**MEMBERS["ffn"], "online": True}}}, "cached features"),
        ({"members": {**MEMBERS, "ffn": {**MEMBERS["ffn"], "train_bn": True}}}, "as they are"),
        (
            {
                "members": {
                    **MEMBERS,
                    "hrjba": {
                        "kind": "hrjba",
                        "backbones": {"head": "a", "tail": "b"},
                        "routing": "oracle",
                    },
                }
            },
            "oracles are no part",
        ),
        ({"backbones": {"a": "resnet8-head", "b": "resnet8-kps"}}, "does not fit"),
        ({"prior": 0.0}, "prior"),
    ],
)
def test_what_cannot_be_stacked_is_refused(changes, message):
    with pytest.raises(InputError, match=message):
        resolve(experiment(**changes), CATALOGUE)


def test_every_backbone_is_trained_again_without_the_held_out_tenth():
    fitted = build_plan(resolve(experiment(), CATALOGUE))
    (cell,) = fitted.of_kind("stage2")
    assert set(cell.inputs) == {"features.a", "features.b", "tuning.a", "tuning.b"}
    assert len(fitted.of_kind("stage1")) == 4
    equal = build_plan(resolve(experiment(weights="equal"), CATALOGUE))
    assert len(equal.of_kind("stage1")) == 2


def test_identity_holds_the_members_and_not_their_backbones_names():
    (cell,) = build_plan(resolve(experiment(), CATALOGUE)).of_kind("stage2")
    assert cell.spec["method"] == {"kind": "stacked", "members": MEMBERS}
    entries = code_entries(cell.spec)
    assert {
        "ltpipe.stage2.stacked.job",
        "ltpipe.stage2.ffn.job",
        "ltpipe.stage2.simple.backbone_head",
    } <= set(entries)
    named = experiment()
    named["methods"]["stack"]["members"] = {
        **MEMBERS,
        "ffn": {**MEMBERS["ffn"], "label": "FFN", "description": "as released"},
    }
    (again,) = build_plan(resolve(named, CATALOGUE)).of_kind("stage2")
    assert again.folder == cell.folder
