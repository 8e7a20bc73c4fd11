"""CWS's second stage: against torch's own training, the alternating one, and sums by hand."""

from __future__ import annotations

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from ltpipe.artifacts.divergence import read_divergence
from ltpipe.config.backbones import CWS, Rule
from ltpipe.data import drawing
from ltpipe.data.loading import open_split
from ltpipe.data.sampling import epoch_order
from ltpipe.data.subset import read_subset
from ltpipe.features.store import FeatureStore
from ltpipe.losses.building import build_loss
from ltpipe.losses.softmax import CrossEntropyLoss
from ltpipe.losses.weights import effective_number_weights
from ltpipe.models.building import build_network, load_weights
from ltpipe.models.mapping import fresh_mapping
from ltpipe.stage1.cws import job as cws
from ltpipe.stage1.cws.mapping import AlternatingMapping
from ltpipe.stage2.core.fit import Recipe
from ltpipe.stage2.cws import cached_splitting, label_mapping
from ltpipe.stage2.cws.label_mapping import view_logits
from ltpipe.stage2.cws.perceptron import Phased, fit_mapping
from ltpipe.stage2.cws.settings import CachedSplitting, LabelMapping
from ltpipe.training.engine import TrainingSet
from ltpipe.training.rules import phases
from ltpipe.utils.errors import InputError
from ltpipe.utils.seeding import generator
from tests.support import CE, CPU, DIGITS, embed, run_job

SUBCLASSES = [3, 2, 1, 1, 1, 1, 1, 1, 1, 1]
LOSSES = {
    "ce": {"loss": {"name": "ce"}},
    "focal": {"loss": {"name": "focal"}},
    "ldam": {"loss": {"name": "ldam"}, "head": "cosine"},
}
ROLE = {"backbones": {"features": "features"}}


def backbone_of(loss, **settings):
    base = {**CE, "system": "cws", "subclasses": SUBCLASSES, "mapping": "alternating"}
    base |= {"mapper": {"input": "softmax"}, "rule": {"name": "rs"}}
    return {**base, "epochs": 12, **LOSSES[loss], **settings}


def plain_data(folder):
    """The digits without augmentation, so that every view of an image is the image."""
    run_job(
        drawing,
        {"kind": "data", "dataset": {k: v for k, v in DIGITS.items() if k != "input"}},
        folder,
    )
    return folder


@pytest.fixture(scope="module", params=["ce", "ldam"])
def trained(request, tmp_path_factory):
    """A backbone over subclasses and its features: name, data, stage one, features."""
    base = tmp_path_factory.mktemp(request.param)
    data = plain_data(base / "data")
    spec = {"kind": "stage1", "dataset": DIGITS, "backbone": backbone_of(request.param), "seed": 2}
    run_job(cws, spec, base / "stage1", data=data)
    embed(
        base / "features",
        backbone_of(request.param),
        base / "stage1",
        data,
        seed=2,
        view_dtype="float32",
    )
    return request.param, data, base / "stage1", base / "features"


def classify(features, output, module=label_mapping, **method):
    method = {"kind": "label-mapping", **method}
    spec = {"kind": "stage2", "method": method, "groups": "ranks", "seed": 2}
    run_job(module, spec, output, features_features=features)
    return output


def probabilities_of(folder):
    with h5py.File(folder / "predictions.h5") as file:
        return file["scores"][0]


@pytest.mark.parametrize("rule", ["none", "rs", "dcb"])
def test_alternating_and_cached_mapping_agree_on_a_frozen_stage_one(trained, rule, tmp_path):
    """Two implementations: autograd on images, batched products on the feature store."""
    loss, data, stage1, features = trained
    recipe = {"epochs": 4, "batch_size": 16, "learning_rate": 0.05}
    values = CWS.model_validate(
        backbone_of(
            loss,
            **recipe,
            rule={"name": rule},
            mapper={},
            schedule={"kind": "constant", "warmup": 0},
        )
    )
    subset = read_subset(data / "subset.h5")
    dataset = {**DIGITS, "input": {**DIGITS["input"], "padding": 0}}
    split = open_split(dataset, subset, "train", CPU, None)
    training_set = TrainingSet(split.batches, split.labels, split.pixels, subset.class_counts)
    network = build_network(values, sum(SUBCLASSES), 1)
    load_weights(network, stage1 / "model.safetensors")
    outputs = build_loss(values.loss, [1] * sum(SUBCLASSES))
    alternating = AlternatingMapping(values, training_set, SUBCLASSES, outputs, 2, CPU)
    for epoch in range(4):
        alternating.run_epoch(network, epoch, 0.05)

    store = FeatureStore.open(features / "train.h5")
    logits = view_logits(store, "plain", CPU)
    torch.testing.assert_close(logits[0], torch.from_numpy(store.logits), rtol=1e-4, atol=1e-4)
    labels = torch.from_numpy(store.labels)
    found = fit_mapping(
        logits,
        labels,
        10,
        build_loss(values.loss, store.class_counts),
        phases(values.rule, store.class_counts, 4),
        Recipe(4, 16, 0.05, "constant", 0.9, 2e-4),
        2,
        CPU,
        cosine=loss == "ldam",
    )
    start = fresh_mapping(
        sum(SUBCLASSES), 10, sum(SUBCLASSES), values.head, generator(2, "mapping")
    )
    for name, value in alternating.trained().items():
        torch.testing.assert_close(found[name][0], value, rtol=2e-3, atol=2e-3)
        assert (value - start[name]).abs().max() > 0.02


@pytest.mark.parametrize("kind", ["logits", "softmax", "log-softmax"])
def test_the_fit_is_torchs_own(kind):
    torch.manual_seed(0)
    labels = torch.arange(5).repeat_interleave(torch.tensor([40, 20, 10, 5, 2]))
    counts = [40, 20, 10, 5, 2]
    logits = torch.randn(3, len(labels), 8) + 3 * torch.randn(5, 8)[labels]
    found = fit_mapping(
        logits,
        labels,
        5,
        CrossEntropyLoss(),
        phases(Rule(name="dcb", start=3), counts, 5),
        Recipe(5, 16, (0.1, 0.02), "cosine", 0.9, 2e-4),
        7,
        CPU,
        hidden=6,
        input=kind,
    )
    for place, rate in enumerate([0.1, 0.02]):
        network = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 5))
        fresh = fresh_mapping(8, 5, 6, "linear", generator(7, "mapping"))
        for parameter, name in zip(network.parameters(), fresh, strict=True):
            parameter.data.copy_(fresh[name])
        optimizer = torch.optim.SGD(network.parameters(), rate, 0.9, weight_decay=2e-4)
        for epoch in range(5):
            weight = effective_number_weights(counts) if epoch >= 3 else None
            draws = generator(7, "stage2", epoch)
            order = epoch_order(labels, 5, "shuffle", draws)
            view = torch.randint(3, order.shape, generator=draws)
            for group in optimizer.param_groups:
                group["lr"] = rate * 0.5 * (1 + np.cos(np.pi * epoch / 5))
            for rows, views in zip(order.split(16), view.split(16), strict=True):
                seen = logits[views, rows]
                if kind != "logits":
                    seen = seen.softmax(1) if kind == "softmax" else seen.log_softmax(1)
                optimizer.zero_grad()
                nn.functional.cross_entropy(network(seen), labels[rows], weight).backward()
                optimizer.step()
        for parameter, name in zip(network.parameters(), fresh, strict=True):
            torch.testing.assert_close(found[name][place], parameter.data, rtol=1e-3, atol=1e-4)


def test_views_have_the_logits_of_the_network_on_them(trained):
    loss, _, stage1, features = trained
    store = FeatureStore.open(features / "train.h5")
    values = CWS.model_validate(backbone_of(loss))
    network = build_network(values, sum(SUBCLASSES), 1)
    load_weights(network, stage1 / "model.safetensors")
    with torch.no_grad():
        expected = torch.stack([network.head(view) for view in torch.from_numpy(store.views)])
    if loss == "ldam":
        expected = 30 * expected
    found = view_logits(store, "cached", CPU)
    assert found.shape == (2, len(store.labels), sum(SUBCLASSES))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_all_three_mappings_are_what_they_say(trained, tmp_path):
    loss, _, stage1, features = trained
    method = {"loss": LOSSES[loss]["loss"], "input": "softmax", "rule": {"name": "rs"}}
    method |= {"batch_size": 16, "epochs": 60}
    folders = {
        "mlp": classify(features, tmp_path / "mlp", **method),
        "marginal": classify(features, tmp_path / "marginal", mapping="marginal"),
        "alternating": classify(features, tmp_path / "alternating", mapping="alternating"),
    }
    for folder in folders.values():
        metrics = pd.read_csv(folder / "metrics.csv").set_index("metric")["value"]
        # A dozen epochs are too few for a mapping under LDAM.
        assert metrics["accuracy"] > (0.3 if loss == "ce" else 0.1)
        assert metrics["auc"] > 0.6
    store = FeatureStore.open(features / "test.h5")
    shares = np.exp(store.logits - store.logits.max(1, keepdims=True)).astype(np.float64)
    shares /= shares.sum(1, keepdims=True)
    ends = np.cumsum(SUBCLASSES)
    starts = ends - SUBCLASSES
    expected = np.stack([shares[:, a:b].sum(1) for a, b in zip(starts, ends, strict=True)], axis=1)
    np.testing.assert_allclose(probabilities_of(folders["marginal"]), expected, atol=1e-6)
    kept = load_file(stage1 / "splitting.safetensors")
    weights = load_file(folders["alternating"] / "models.safetensors")
    for name, value in weights.items():
        assert torch.equal(value[0], kept[f"mapping.{name}"])


def test_a_rate_that_does_not_converge_has_no_number_and_a_reason(trained, tmp_path):
    _, _, _, features = trained
    folder = classify(features, tmp_path / "out", learning_rate=[0.01, 1e30], epochs=5)
    metrics = pd.read_csv(folder / "metrics.csv")
    assert metrics[metrics["point"] == 0]["value"].notna().all()
    assert metrics[metrics["point"] == 1]["value"].isna().all()
    assert read_divergence(folder) == {1: "its probabilities are not finite"}


def test_a_lost_backbone_gives_no_numbers(tmp_path):
    data = plain_data(tmp_path / "data")
    backbone = backbone_of("ce", learning_rate=1e30)
    spec = {"kind": "stage1", "dataset": DIGITS, "backbone": backbone, "seed": 2}
    run_job(cws, spec, tmp_path / "stage1", data=data)
    features = embed(tmp_path / "features", backbone, tmp_path / "stage1", data, seed=2)
    store = FeatureStore.open(features / "test.h5")
    assert not store.features.any()
    assert "the loss is nan" in store.attributes["diverged"]
    for mapping in ("mlp", "marginal", "alternating"):
        folder = classify(features, tmp_path / mapping, mapping=mapping)
        assert pd.read_csv(folder / "metrics.csv")["value"].isna().all()
        assert "backbone: the loss is nan" in read_divergence(folder)[0]


def test_without_an_alternating_stage_one_there_is_no_such_mapping(tmp_path):
    data = plain_data(tmp_path / "data")
    backbone = backbone_of("ce", mapping="cached", epochs=1)
    del backbone["mapper"]
    spec = {"kind": "stage1", "dataset": DIGITS, "backbone": backbone, "seed": 2}
    run_job(cws, spec, tmp_path / "stage1", data=data)
    features = embed(tmp_path / "features", backbone, tmp_path / "stage1", data, seed=2)
    with pytest.raises(InputError, match="trained no mapping"):
        classify(features, tmp_path / "out", mapping="alternating")


@pytest.mark.parametrize("loss", ["ce", "ldam"])
@pytest.mark.parametrize("mapping", ["marginal", "mlp"])
def test_cached_splitting_is_taught_the_shells_of_the_features(
    trained, loss, mapping, tmp_path, monkeypatch
):
    _, _, _, features = trained
    taught = []
    batches = Phased.batches

    def watch(self, rows, views, batch_size, targets=None):
        taught.append((self.loss, views, targets))
        return batches(self, rows, views, batch_size, targets)

    monkeypatch.setattr(Phased, "batches", watch)
    folder = classify(
        features,
        tmp_path / "out",
        cached_splitting,
        kind="cached-splitting",
        mapping=mapping,
        loss={"name": loss},
        subclasses=SUBCLASSES,
        learning_rate=0.02,
        batch_size=16,
        epochs=60,
    )
    store = FeatureStore.open(features / "train.h5")
    expected = np.empty(len(store.labels), np.int64)
    for label, number in enumerate(SUBCLASSES):
        members = store.features[store.labels == label].astype(np.float64)
        distances = np.linalg.norm(members - members.mean(0), axis=1)
        # A class of one sample lies in its centre.
        shell = np.ceil(distances / max(distances.max(), 1e-12) * number) - 1
        expected[store.labels == label] = sum(SUBCLASSES[:label]) + shell.clip(0, number - 1)
    of_classes, views, targets = taught[0]
    assert views == 2
    assert np.mean(targets.numpy() == expected) > 0.98  # Bounds are met within rounding.
    if loss == "ldam":
        counts = np.bincount(targets, minlength=sum(SUBCLASSES)).clip(1)
        margins = counts**-0.25
        np.testing.assert_allclose(of_classes.margins, 0.5 * margins / margins.max(), rtol=1e-5)
    assert [t[2] is None for t in taught[1:]] == [True] * (mapping == "mlp")
    weights = load_file(folder / "models.safetensors")
    assert weights["weight"].shape == (1, sum(SUBCLASSES), 64)
    assert ("weight1" in weights) == (mapping == "mlp")
    metrics = pd.read_csv(folder / "metrics.csv").set_index("metric")["value"]
    assert metrics["accuracy"] > 0.4


@pytest.mark.parametrize(
    ("model", "settings", "message"),
    [
        (LabelMapping, {"mapping": "marginal", "epochs": 3}, "trains nothing: it has no epochs"),
        (LabelMapping, {"mapping": "alternating", "input": "softmax"}, "it has no input"),
        (LabelMapping, {"sampler": "balanced"}, "rule says how samples are drawn"),
        (LabelMapping, {"rule": {"name": "dcb", "start": 30}}, "beyond the last of 30 epochs"),
        (CachedSplitting, {"hidden": 3}, "belong to mapping: mlp"),
        (CachedSplitting, {"mapping": "mlp", "learning_rate": [0.1, 0.2]}, "takes one number"),
    ],
)
def test_settings_that_make_no_sense_are_refused(model, settings, message):
    kind = model.model_fields["kind"].annotation.__args__[0]
    with pytest.raises(ValueError, match=message):
        model.model_validate({"kind": kind, **ROLE, **settings})
