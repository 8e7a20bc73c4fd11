"""CWS's stage one: what the loss is given, what a job leaves, what the mapping may not touch."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from ltpipe.artifacts.divergence import read_divergence
from ltpipe.config.backbones import CWS, backbone_settings
from ltpipe.data.subset import read_subset
from ltpipe.features.store import FeatureStore
from ltpipe.models.building import build_network
from ltpipe.models.mapping import read_splitting
from ltpipe.stage1.cws import job as cws
from ltpipe.stage1.cws.job import SplittingTask, occupancy_table
from ltpipe.stage1.cws.subclasses import subclass_counts
from ltpipe.stage2.simple import backbone_head
from ltpipe.training import distributed
from ltpipe.training.rules import phases
from ltpipe.utils.errors import InputError
from tests.support import CE, CPU, DIGITS, draw, embed, run_job, training_set

SPEC = {**CE, "system": "cws", "epochs": 4, "subclasses": [3, 2, 1, 1, 1, 1, 1, 1, 1, 1]}
LDAM = {"head": "cosine", "loss": {"name": "ldam"}}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return draw(tmp_path_factory.mktemp("cws"))


@pytest.fixture(scope="module")
def digits(data):
    return training_set(data)


def task_of(digits, **settings):
    values = CWS.model_validate({**SPEC, **settings})
    numbers = subclass_counts(values.subclasses, digits.class_counts)
    torch.manual_seed(0)
    network = build_network(values, sum(numbers), 1)
    return SplittingTask(network, digits, values, numbers, 0, CPU)


def train(data, output, **settings):
    spec = {"kind": "stage1", "dataset": DIGITS, "backbone": {**SPEC, **settings}, "seed": 3}
    return output, run_job(cws, spec, output, data=data)


class Spy:
    """Wraps the losses that the task builds and keeps what each is given."""

    def __init__(self, monkeypatch):
        self.built, self.seen = [], []
        build = cws.build_loss

        def build_and_watch(settings, counts):
            loss = build(settings, counts)
            self.built.append((list(counts), loss))
            forward = loss.forward

            def watch(outputs, target):
                value = forward(outputs, target)
                self.seen.append((loss, outputs.detach().clone(), target.clone(), value.item()))
                return value

            loss.forward = watch
            return loss

        monkeypatch.setattr(cws, "build_loss", build_and_watch)


@pytest.mark.parametrize("scope", ["batch", "running-max", "epoch"])
def test_what_the_loss_is_given(digits, monkeypatch, scope):
    spy = Spy(monkeypatch)
    task = task_of(digits, scope=scope)
    outputs = []
    task.network.head.register_forward_hook(lambda *a: outputs.append(a[2].detach()))
    total, correct = task.run_epoch(0, 0.01)
    owner = np.repeat(np.arange(10), task.subclasses)
    pseudo = torch.cat([target for _, _, target, _ in spy.seen]).numpy()
    # Every sample once, under a subclass of its own class.
    counted = np.bincount(owner[pseudo], minlength=10)
    assert counted.tolist() == digits.class_counts
    assert task.occupancy[0].tolist() == np.bincount(pseudo, minlength=13).tolist()
    assert task.pseudo_counts.tolist() == task.occupancy[0].clamp_min(1).tolist()
    predicted = np.concatenate([o.argmax(1).numpy() for _, o, _, _ in spy.seen])
    assert correct == (owner[predicted] == owner[pseudo]).sum()
    assert total == pytest.approx(sum(v * len(t) for _, _, t, v in spy.seen), rel=1e-5)


def test_losses_and_weights_follow_the_counts_of_the_epoch_before(digits, monkeypatch):
    spy = Spy(monkeypatch)
    task = task_of(digits, **LDAM, rule={"name": "cb-rw"})
    shares = [n / k for n, k in zip(digits.class_counts, task.subclasses, strict=True)]
    first = np.repeat(shares, task.subclasses).round().clip(1)
    expected = [first.tolist()]
    for epoch in range(2):
        task.run_epoch(epoch, 0.01)
        expected.append(task.occupancy[epoch].clamp_min(1).tolist())
    # One is built with the task and serves its scale alone.
    for (counts, loss), wanted in zip(spy.built[1:], expected, strict=False):
        assert counts == wanted
        margins = np.array(wanted) ** -0.25
        np.testing.assert_allclose(loss.margins, 0.5 * margins / margins.max(), rtol=1e-5)
        rule = task.settings.rule
        torch.testing.assert_close(loss.class_weights(), phases(rule, counts, 4)[0].weights)
    assert len(spy.built) == 3


def test_resampling_draws_by_real_classes(digits):
    task = task_of(digits, rule={"name": "rs"})
    task.run_epoch(0, 0.01)
    owner = torch.arange(10).repeat_interleave(torch.tensor(task.subclasses))
    drawn = torch.zeros(10, dtype=torch.int64).index_add_(0, owner, task.occupancy[0])
    samples = len(digits.labels)
    assert drawn.sum() == samples
    # Each class is drawn a tenth of the time, with a deviation of sqrt(N 0.09).
    assert (drawn - samples / 10).abs().max() < 5 * (0.09 * samples) ** 0.5


def test_the_whole_sets_labels_hold_for_an_epoch(digits, monkeypatch):
    spy = Spy(monkeypatch)
    task = task_of(digits, scope="epoch")
    task.network.eval()
    pixels = digits.pixels
    order = torch.arange(len(digits.labels))
    batches = digits.batches.epoch(order, 500, None)
    images = torch.cat([(b.float() / 255 - pixels.mean[0]) / pixels.std[0] for b in batches])
    with torch.no_grad():
        features = task.network.features(images)
    task.run_epoch(0, 0.01)
    for label in range(10):
        mean = features[digits.labels == label].mean(0)
        torch.testing.assert_close(task.clustering.centres[label], mean, rtol=1e-4, atol=1e-5)
    assert len(spy.seen) == -(-len(order) // SPEC["batch_size"])


def test_the_backbone_is_the_same_with_an_alternating_mapping(data, tmp_path):
    settings = {"rule": {"name": "dcb", "start": 2}, **LDAM}
    alone, _ = train(data, tmp_path / "alone", **settings)
    mapped, _ = train(data, tmp_path / "mapped", mapping="alternating", **settings)
    weights = "model.safetensors"
    assert (alone / weights).read_bytes() == (mapped / weights).read_bytes()
    assert not (alone / "mapping.csv").exists()
    assert read_splitting(alone).mapping == {}
    found = read_splitting(mapped)
    assert found.mapping["weight1"].shape == (13, 13)
    assert found.mapping["weight2"].shape == (10, 13)
    assert torch.equal(found.centres, read_splitting(alone).centres)
    history = pd.read_csv(mapped / "mapping.csv")
    assert history["epoch"].tolist() == [0, 1, 2, 3]
    assert history["loss"].iloc[-1] < history["loss"].iloc[0]


@pytest.mark.parametrize("scope", ["running-max", "epoch"])
def test_an_interrupted_job_goes_on_as_if_it_had_not_been(data, tmp_path, monkeypatch, scope):
    settings = {"mapping": "alternating", "scope": scope, "rule": {"name": "cb-rw"}, "epochs": 7}
    unbroken, _ = train(data, tmp_path / "unbroken", **settings)
    run_epoch = SplittingTask.run_epoch

    def power(self, epoch, rate):
        if epoch == 6:
            raise KeyboardInterrupt
        return run_epoch(self, epoch, rate)

    with monkeypatch.context() as patch:
        patch.setattr(SplittingTask, "run_epoch", power)
        with pytest.raises(KeyboardInterrupt):
            train(data, tmp_path / "broken", **settings)
    assert [path.name for path in (tmp_path / "broken").iterdir()] == ["resume"]
    epochs = []

    def watch(self, epoch, rate):
        epochs.append(epoch)
        return run_epoch(self, epoch, rate)

    monkeypatch.setattr(SplittingTask, "run_epoch", watch)
    broken, _ = train(data, tmp_path / "broken", **settings)
    assert epochs == [5, 6]
    for name in ("model.safetensors", "splitting.safetensors", "occupancy.csv", "mapping.csv"):
        assert (broken / name).read_bytes() == (unbroken / name).read_bytes()


def test_a_job_learns_and_its_store_is_over_subclasses(data, tmp_path):
    stage1, facts = train(data, tmp_path / "stage1", epochs=20, **LDAM)
    assert facts["subclasses"] == [3, 2, 1, 1, 1, 1, 1, 1, 1, 1]
    history = pd.read_csv(stage1 / "history.csv")
    assert history["accuracy"].iloc[-1] > 0.7
    occupancy = pd.read_csv(stage1 / "occupancy.csv")
    assert len(occupancy) == 20 * 13
    sizes = occupancy.groupby(["epoch", "class"])["samples"].sum().unstack()
    assert (sizes == read_subset(data / "subset.h5").class_counts).all(axis=None)
    backbone = {**SPEC, "epochs": 20, **LDAM}
    folder = embed(tmp_path / "features", backbone, stage1, data, seed=3)
    store = FeatureStore.open(folder / "test.h5")
    assert store.logits.shape == (len(store.labels), 13)
    assert store.attributes["subclasses"].tolist() == facts["subclasses"]
    assert store.attributes["logit_scale"] == 30
    owner = np.repeat(np.arange(10), facts["subclasses"])
    assert np.mean(owner[store.logits.argmax(1)] == store.labels) > 0.3


def test_methods_for_classes_refuse_a_store_over_subclasses(data, tmp_path):
    stage1, _ = train(data, tmp_path / "stage1", epochs=1)
    features = embed(tmp_path / "features", {**SPEC, "epochs": 1}, stage1, data, seed=3)
    spec = {"kind": "stage2", "method": {"kind": "backbone-head"}, "groups": "ranks", "seed": 0}
    with pytest.raises(InputError, match="over subclasses; method label-mapping"):
        run_job(backbone_head, spec, tmp_path / "out", features_features=features)


def test_a_run_without_a_finite_loss_ends_with_a_record(data, tmp_path):
    stage1, facts = train(data, tmp_path / "stage1", learning_rate=1e30)
    assert "the loss is nan after epoch" in facts["diverged"]
    assert read_divergence(stage1) == {0: facts["diverged"]}
    history = pd.read_csv(stage1 / "history.csv")
    assert history["loss"].isna().tolist()[-1]
    assert len(history) < 4 or history["loss"].isna().sum() == 1
    assert not (stage1 / "resume").exists()
    # The same folder with a run that converges has no such record.
    _, facts = train(data, stage1)
    assert "diverged" not in facts
    assert read_divergence(stage1) == {}


def test_empty_subclasses_end_a_run_only_where_they_are_fatal(data, tmp_path):
    # The shell around a centre holds nothing where features have dozens of dimensions.
    settings = {"subclasses": [20, 1, 1, 1, 1, 1, 1, 1, 1, 1]}
    folder, facts = train(data, tmp_path / "kept", **settings)
    occupancy = pd.read_csv(folder / "occupancy.csv")
    last = occupancy[occupancy["epoch"] == occupancy["epoch"].max()]
    assert (last["samples"] == 0).any()
    assert "diverged" not in facts
    folder, facts = train(data, tmp_path / "fatal", empty="fatal", **settings)
    assert "29 subclasses have no sample in the last epoch" in facts["diverged"]
    assert json.loads((folder / "diverged.json").read_text()) == {"0": facts["diverged"]}


def test_several_processes_are_refused(data, tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "size", lambda: 2)
    with pytest.raises(InputError, match="cws trains in one process"):
        train(data, tmp_path / "stage1")


def test_the_automatic_numbers_fit_the_data(data, tmp_path):
    _, by_size = train(data, tmp_path / "size", epochs=1, subclasses="counts")
    _, by_spread = train(data, tmp_path / "spread", epochs=1, subclasses="counts-and-spread")
    assert by_size["subclasses"][0] == 5
    assert by_size["subclasses"] != by_spread["subclasses"]
    weights = load_file(tmp_path / "spread/model.safetensors")
    assert len(weights["head.weight"]) == sum(by_spread["subclasses"])


def test_occupancy_rows():
    table = occupancy_table(torch.tensor([[4, 1, 7], [3, 2, 7]]), [2, 1])
    assert table.to_numpy().tolist() == [
        [0, 0, 0, 4],
        [0, 0, 1, 1],
        [0, 1, 0, 7],
        [1, 0, 0, 3],
        [1, 0, 1, 2],
        [1, 1, 0, 7],
    ]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"head": "cosine"}, "no scale for cosines"),
        ({"loss": {"name": "ldam"}}, "set head: cosine"),
        ({"scope": "epoch", "alpha": 0.5}, "exact class means"),
        ({"mapper": {"hidden": 3}}, "belongs to mapping: alternating"),
        ({"subclasses": [2, 0]}, "at least one"),
        ({"subclasses": "paper-17"}, "paper-18"),
        ({"rule": {"name": "drw", "start": 4}}, "beyond the last of 4 epochs"),
        ({"network": "bbn-resnet8"}, "two branches"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        backbone_settings({**SPEC, **settings})


def test_other_systems_end_with_the_same_record(data, tmp_path):
    from ltpipe.stage1 import supervised

    spec = {"kind": "stage1", "dataset": DIGITS, "backbone": {**CE, "learning_rate": 1e30}}
    facts = run_job(supervised, {**spec, "seed": 0}, tmp_path / "stage1", data=data)
    assert read_divergence(tmp_path / "stage1") == {0: facts["diverged"]}
