"""Rebalancing rules: what holds in each epoch, what is refused, and that every loss trains."""

from __future__ import annotations

import math
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch

from ltpipe.config.backbones import Backbone, Rule
from ltpipe.config.experiment import resolve
from ltpipe.config.registry import registered
from ltpipe.data.loading import open_split
from ltpipe.data.sampling import epoch_order
from ltpipe.data.subset import read_subset
from ltpipe.losses.building import build_loss
from ltpipe.models.building import build_network
from ltpipe.training import engine
from ltpipe.training.engine import SupervisedTask, TrainingSet, train
from ltpipe.training.rules import phases
from ltpipe.utils.errors import InputError
from tests.support import CE, CPU, DIGITS, draw

CATALOGUE = Path(__file__).resolve().parents[2] / "config"
# CIFAR-10-LT training counts at imbalance 100, and the class weights of its rules.
COUNTS = [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
WEIGHTS = {
    None: None,
    "inverse": [
        0.040236, 0.067128, 0.112017, 0.186799, 0.311911,
        0.519851, 0.867166, 1.447356, 2.423885, 4.02365,
    ],
    "effective": [
        0.050611, 0.0769, 0.121134, 0.195037, 0.318805,
        0.52459, 0.868349, 1.442627, 2.409223, 3.992724,
    ],
}  # fmt: skip
# Settings of a rule; its sampler and its weights where it acts; the epoch of 200 where it starts.
PHASES = [
    ({"name": "none"}, "shuffle", None, 0),
    ({"name": "rs"}, "balanced", None, 0),
    ({"name": "rs", "by": "inverse"}, "balanced", None, 0),
    ({"name": "rs", "by": "effective"}, "effective", None, 0),
    ({"name": "rs", "by": "sqrt"}, "sqrt", None, 0),
    ({"name": "rw"}, "shuffle", "inverse", 0),
    ({"name": "rw", "by": "effective"}, "shuffle", "effective", 0),
    ({"name": "cb-rw"}, "shuffle", "effective", 0),
    ({"name": "drs"}, "balanced", None, 160),
    ({"name": "drs", "by": "effective", "start": 3}, "effective", None, 3),
    ({"name": "drs", "by": "sqrt", "start": 0}, "sqrt", None, 0),
    # The HRJBA paper's DRW and DCB; what LDAM's code calls DRW is the second, or the third.
    ({"name": "drw"}, "shuffle", "inverse", 160),
    ({"name": "dcb"}, "shuffle", "effective", 160),
    ({"name": "drw", "by": "effective"}, "shuffle", "effective", 160),
    ({"name": "dcb", "start": 199}, "shuffle", "effective", 199),
]


@pytest.mark.parametrize(("settings", "sampler", "weights", "start"), PHASES)
def test_phases(settings, sampler, weights, start):
    found = phases(Rule.model_validate(settings), COUNTS, 200)
    assert len(found) == 200
    for epoch, phase in enumerate(found):
        acts = epoch >= start
        assert phase.sampler == (sampler if acts else "shuffle")
        if weights is None or not acts:
            assert phase.weights is None
        else:
            np.testing.assert_allclose(phase.weights, WEIGHTS[weights], atol=1e-6)


def test_the_phases_are_those_of_every_rule():
    names = set(get_args(Rule.model_fields["name"].annotation))
    assert {settings["name"] for settings, *_ in PHASES} == names
    assert set(registered("rule")) == names


@pytest.mark.parametrize(("epochs", "start"), [(1, 0), (4, 3), (10, 8), (90, 72), (200, 160)])
def test_deferred_rules_wait_for_four_fifths_of_the_epochs(epochs, start):
    found = phases(Rule(name="dcb"), COUNTS, epochs)
    assert [phase.weights is not None for phase in found] == [e >= start for e in range(epochs)]


@pytest.mark.parametrize(
    "settings",
    [
        {"name": "cb-rw", "beta": 0.9},
        {"name": "dcb", "beta": 0.9},
        {"name": "rw", "by": "effective", "beta": 0.9},
        {"name": "drw", "by": "effective", "beta": 0.9},
    ],
)
def test_beta_of_the_effective_number(settings):
    inverse = [1 / sum(0.9**k for k in range(n)) for n in (60, 11, 2)]
    expected = [3 * weight / sum(inverse) for weight in inverse]
    phase = phases(Rule.model_validate(settings), [60, 11, 2], 5)[-1]
    np.testing.assert_allclose(phase.weights, expected, rtol=1e-6)


# How likely a class of n samples is drawn, up to a constant.
LIKELY = {
    "inverse": lambda n: 1.0,
    "sqrt": math.sqrt,
    "effective": lambda n: n * (1 - 0.9999) / (1 - 0.9999**n),
}


@pytest.mark.parametrize("name", ["rs", "drs"])
@pytest.mark.parametrize("by", LIKELY)
def test_resampling_draws_classes_as_often_as_stated(name, by):
    labels = torch.arange(10).repeat_interleave(torch.tensor(COUNTS))
    expected = np.array([LIKELY[by](n) for n in COUNTS])
    expected /= expected.sum()
    observed = np.zeros(10)
    epochs = phases(Rule(name=name, by=by), COUNTS, 5)[-1:] * 5
    for seed, phase in enumerate(epochs):
        order = epoch_order(labels, 10, phase.sampler, torch.Generator().manual_seed(seed))
        assert len(order) == len(labels)
        observed += np.bincount(labels[order], minlength=10)
    draws = 5 * len(labels)
    deviation = np.sqrt(expected * (1 - expected) / draws)
    assert (np.abs(observed / draws - expected) <= 4 * deviation).all()


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"name": "drww"}, "unknown value 'drww' (did you mean 'drw'"),
        ({"name": "cb-rw", "by": "inverse"}, "rule 'cb-rw' has no by: inverse (it takes none)"),
        ({"name": "dcb", "by": "effective"}, "rule 'dcb' has no by: effective (it takes none)"),
        ({"name": "none", "by": "sqrt"}, "rule 'none' has no by: sqrt (it takes none)"),
        (
            {"name": "rw", "by": "sqrt"},
            "rule 'rw' has no by: sqrt (one of inverse, effective)",
        ),
        ({"name": "rs", "by": "effectiv"}, "did you mean 'effective'"),
        ({"name": "rw", "start": 3}, "rule 'rw' acts from the first epoch: it has no start"),
        ({"name": "none", "start": 3}, "rule 'none' acts from the first epoch"),
        ({"name": "drw", "start": 6}, "rule.start 6 lies beyond the last of 6 epochs"),
        ({"name": "drs", "start": -1}, "rule.start: "),
        ({"name": "rw", "beta": 0.9}, "rule 'rw' has no beta"),
        ({"name": "drs", "by": "effective", "beta": 0.9}, "rule 'drs' has no beta"),
        ({"name": "dcb", "beta": 1.0}, "rule.beta: "),
        ({"name": "dcb", "begin": 1}, "unknown key 'begin'"),
        ({"by": "sqrt"}, "rule.name: this key is required"),
    ],
)
def test_settings_that_are_refused(rule, message):
    experiment = {
        "experiment": "small",
        "seeds": [0],
        "datasets": {"digits-lt": None},
        "backbones": {"b": {**CE, "epochs": 6, "rule": rule}},
        "methods": {"CE": {"use": "backbone-head", "backbones": {"features": "b"}}},
    }
    with pytest.raises(InputError) as caught:
        resolve(experiment, CATALOGUE)
    assert message in str(caught.value)
    assert "backbones.b" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = draw(tmp_path_factory.mktemp("rules"))
    subset = read_subset(folder / "subset.h5")
    split = open_split(DIGITS, subset, "train", CPU, None)
    return TrainingSet(split.batches, split.labels, split.pixels, subset.class_counts)


def settings_of(loss, rule, **more):
    head = "cosine" if loss in ("ldam", "kps") else "linear"
    return Backbone.model_validate(
        {**CE, "head": head, "loss": {"name": loss}, "rule": rule, "batch_size": 64, **more}
    )


@pytest.mark.parametrize("rule", registered("rule"))
@pytest.mark.parametrize("loss", registered("loss"))
def test_every_loss_trains_under_every_rule(data, loss, rule):
    settings = settings_of(loss, {"name": rule}, epochs=1, learning_rate=0.01)
    torch.manual_seed(0)
    network = build_network(settings, 10, 1)
    before = {name: value.clone() for name, value in network.named_parameters()}
    built = build_loss(settings.loss, data.class_counts)
    (record,) = train(network, built, data, settings, seed=0, device=CPU)
    assert math.isfinite(record.loss)
    assert record.loss > 0
    assert all(value.isfinite().all() for value in network.state_dict().values())
    assert any(not torch.equal(v, before[name]) for name, v in network.named_parameters())
    # The only epoch is a deferred rule's, too.
    reweighted = rule in ("rw", "cb-rw", "drw", "dcb")
    assert (built.rule_weight is not None) == reweighted


@pytest.mark.parametrize(
    ("rule", "samplers", "reweighted"),
    [
        ({"name": "none"}, ["shuffle"] * 3, [False] * 3),
        ({"name": "rs", "by": "sqrt"}, ["sqrt"] * 3, [False] * 3),
        ({"name": "drs", "start": 1}, ["shuffle", "balanced", "balanced"], [False] * 3),
        ({"name": "rw"}, ["shuffle"] * 3, [True] * 3),
        ({"name": "dcb", "start": 2}, ["shuffle"] * 3, [False, False, True]),
    ],
)
def test_training_follows_the_rule_epoch_by_epoch(data, monkeypatch, rule, samplers, reweighted):
    kinds, weights = [], []

    def order(labels, classes, kind, draws):
        kinds.append(kind)
        return epoch_order(labels, classes, kind, draws)

    monkeypatch.setattr(engine, "epoch_order", order)
    settings = settings_of("ce", rule, epochs=3)
    network = build_network(settings, 10, 1)
    loss = build_loss(settings.loss, data.class_counts)
    task = SupervisedTask(network, loss, data, settings, 0, CPU)
    for epoch in range(3):
        task.run_epoch(epoch, 0.01)
        weights.append(loss.class_weights())
    assert kinds == samplers
    assert [weight is not None for weight in weights] == reweighted
    smallest = int(np.argmin(data.class_counts))
    for weight in weights:
        assert weight is None or weight.argmax() == smallest
