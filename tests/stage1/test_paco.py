"""PaCo: the momentum encoder, the queue, and what a job leaves."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from ltpipe.artifacts.job import Job
from ltpipe.config.backbones import PaCo, backbone_settings
from ltpipe.data.sampling import epoch_order
from ltpipe.data.subset import read_subset
from ltpipe.data.two_views import two_views
from ltpipe.features.store import FeatureStore
from ltpipe.losses.contrastive import paco_loss
from ltpipe.models.building import build_network
from ltpipe.models.resnet import resnet8
from ltpipe.stage1 import paco
from ltpipe.stage1.paco import ContrastiveTask
from ltpipe.training import distributed
from ltpipe.utils.errors import InputError
from ltpipe.utils.seeding import generator
from tests import support
from tests.support import CE, CPU, DIGITS, draw, embed

SPEC = {key: value for key, value in CE.items() if key != "loss"} | {
    "system": "paco",
    "epochs": 6,
    "learning_rate": 0.05,
    "queue": 50,
    "projection": 8,
    "temperature": 0.2,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return draw(tmp_path_factory.mktemp("paco"))


@pytest.fixture(scope="module")
def training_set(data):
    return support.training_set(data)


def task_of(training_set, **settings):
    torch.manual_seed(0)
    values = PaCo.model_validate({**SPEC, **settings})
    return ContrastiveTask(resnet8(10, in_channels=1), training_set, values, 0, CPU)


def train(data, output, checkpoint_every=5, **settings):
    backbone = {**SPEC, **settings}
    spec = {"kind": "stage1", "dataset": DIGITS, "backbone": backbone, "seed": 3}
    output.mkdir(exist_ok=True)
    paco.run(Job(spec, {"data": data}, output, CPU, checkpoint_every=checkpoint_every))
    return output


@pytest.fixture
def calls(monkeypatch):
    """The arguments of every call of the loss."""
    seen = []

    def spy(*arguments, **settings):
        names = ("centre_logits", "queries", "keys", "queue", "target", "queue_target")
        values = [argument.detach().clone() for argument in arguments]
        seen.append(dict(zip(names, values, strict=True)) | settings)
        return paco_loss(*arguments, **settings)

    monkeypatch.setattr(paco, "paco_loss", spy)
    return seen


def test_the_key_encoder_follows_by_momentum(training_set):
    task = task_of(training_set, encoder_momentum=0.9)
    expected = {n: p.detach().double() for n, p in task.encoder.named_parameters()}
    step = task.optimizer.step
    steps = []

    def follow_and_step(rate):
        # The weights that this step is about to change are those that the keys' encoder followed.
        for name, parameter in task.encoder.named_parameters():
            expected[name] = 0.9 * expected[name] + 0.1 * parameter.detach().double()
        steps.append(rate)
        step(rate)

    task.optimizer.step = follow_and_step
    for epoch in range(2):
        task.run_epoch(epoch, 0.05)
    assert len(steps) > 10
    distance = 0.0
    for name, parameter in task.key_encoder.named_parameters():
        torch.testing.assert_close(parameter.double(), expected[name], rtol=1e-5, atol=1e-6)
        queries = dict(task.encoder.named_parameters())[name]
        distance = max(distance, (queries - parameter).abs().max().item())
        assert not parameter.requires_grad
    assert distance > 0.01


def test_the_queue_holds_the_latest_keys_in_a_ring(training_set, calls):
    task = task_of(training_set, queue=50)
    for epoch in range(2):
        task.run_epoch(epoch, 0.01)
    assert sum(len(call["keys"]) for call in calls) > 3 * 50
    slots = []
    position = 0
    for call in calls:
        # What is enqueued is there for the next batch, never for its own.
        assert len(call["queue"]) == len(call["queue_target"]) == len(slots)
        for stored, (key, label) in zip(
            zip(call["queue"], call["queue_target"], strict=True), slots, strict=True
        ):
            assert torch.equal(stored[0], key)
            assert stored[1] == label
        for entry in zip(call["keys"], call["target"], strict=True):
            slots[position : position + 1] = [entry]
            position = (position + 1) % 50
    assert len(slots) == 50
    assert task.position.tolist() == [position, 50]
    lengths = {len(call["target"]) for call in calls}
    assert len(lengths) > 1  # The ring's end falls inside of batches.


def test_a_batch_larger_than_the_queue_leaves_its_end(training_set):
    task = task_of(training_set, queue=4, projection=2)
    keys = torch.arange(14, dtype=torch.float32).reshape(7, 2)
    task._enqueue(keys[:3], torch.arange(3))
    assert task.position.tolist() == [3, 3]
    task._enqueue(keys, torch.arange(7))
    assert sorted(task.queue_target.tolist()) == [3, 4, 5, 6]
    for key, label in zip(task.queue, task.queue_target, strict=True):
        assert torch.equal(key, keys[label])
    assert task.position.tolist() == [3, 4]
    # The next key goes where the oldest is.
    task._enqueue(keys[:1] - 5, torch.tensor([9]))
    assert sorted(task.queue_target.tolist()) == [4, 5, 6, 9]


def test_without_a_queue_there_is_nothing_to_keep(training_set, calls):
    task = task_of(training_set, queue=0)
    task.run_epoch(0, 0.01)
    assert calls
    assert all(call["queue"].shape == (0, 8) for call in calls)


def test_what_the_loss_is_given(training_set, calls):
    outputs = []
    task = task_of(training_set, centre_temperature=0.5, alpha=0.05, centre_weight=0.8)
    task.encoder.network.head.register_forward_hook(lambda *a: outputs.append(a[2].detach()))
    total, correct = task.run_epoch(0, 0.01)
    assert len(outputs) == len(calls)
    counts = np.array(training_set.class_counts)
    prior = np.log(counts / counts.sum())
    loss = hits = 0.0
    for call, output in zip(calls, outputs, strict=True):
        expected = (output.double().numpy() + prior) / 0.5
        np.testing.assert_allclose(call["centre_logits"], expected, rtol=1e-5, atol=1e-5)
        for vectors in (call["queries"], call["keys"]):
            np.testing.assert_allclose(vectors.norm(dim=1), 1, atol=1e-5)
        assert (call["alpha"], call["centre_weight"], call["temperature"]) == (0.05, 0.8, 0.2)
        # Keys are of other views of the same images, by the slower encoder.
        assert not torch.allclose(call["queries"], call["keys"], atol=1e-2)
        loss += len(output) * paco_loss(**call).item()
        hits += int((output.argmax(1) == call["target"]).sum())
    assert total == pytest.approx(loss, rel=1e-5)
    assert correct == hits
    targets = torch.cat([call["target"] for call in calls])
    assert torch.equal(targets.sort().values, training_set.labels.sort().values)


def test_a_last_batch_of_one_is_left_out(training_set, calls):
    samples = len(training_set.labels)
    task = task_of(training_set, batch_size=samples - 1)
    total, _ = task.run_epoch(0, 0.01)
    assert [len(call["target"]) for call in calls] == [samples - 1]
    assert np.isfinite(total)


def test_an_interrupted_job_goes_on_as_if_it_had_not_been(data, tmp_path, monkeypatch):
    unbroken = train(data, tmp_path / "unbroken", checkpoint_every=2)
    samples = sum(read_subset(data / "subset.h5").class_counts)
    batches = -(-samples // SPEC["batch_size"])
    calls = []

    def power(*arguments, **settings):
        calls.append(1)
        if len(calls) == 3 * batches + 2:
            raise KeyboardInterrupt
        return paco_loss(*arguments, **settings)

    broken = tmp_path / "broken"
    with monkeypatch.context() as patch:
        patch.setattr(paco, "paco_loss", power)
        with pytest.raises(KeyboardInterrupt):
            train(data, broken, checkpoint_every=2)
    assert [path.name for path in broken.iterdir()] == ["resume"]
    resumed = []

    def count(*arguments, **settings):
        resumed.append(1)
        return paco_loss(*arguments, **settings)

    monkeypatch.setattr(paco, "paco_loss", count)
    train(data, broken, checkpoint_every=2)
    assert len(resumed) == 4 * batches
    assert (broken / "model.safetensors").read_bytes() == (
        unbroken / "model.safetensors"
    ).read_bytes()
    histories = [pd.read_csv(f / "history.csv").drop(columns="seconds") for f in (broken, unbroken)]
    pd.testing.assert_frame_equal(*histories)
    assert not (broken / "resume").exists()


def test_a_job_learns_and_leaves_the_network_alone(data, tmp_path):
    stage1 = train(data, tmp_path / "stage1", epochs=12)
    history = pd.read_csv(stage1 / "history.csv")
    assert history.loss.iloc[-1] < history.loss.iloc[0]
    backbone = {**SPEC, "epochs": 12}
    weights = load_file(stage1 / "model.safetensors")
    expected = build_network(backbone_settings(backbone), 10, 1).state_dict()
    assert {n: v.shape for n, v in weights.items()} == {n: v.shape for n, v in expected.items()}
    features = embed(tmp_path / "features", backbone, stage1, data, seed=3)
    stored = FeatureStore.open(features / "test.h5")
    accuracy = np.mean(stored.logits.argmax(1) == stored.labels)
    assert accuracy > 0.5


def test_several_processes_are_refused(data, tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "size", lambda: 2)
    with pytest.raises(InputError, match="paco trains in one process"):
        train(data, tmp_path / "stage1")


def test_a_cosine_head_is_refused():
    with pytest.raises(ValueError, match="linear classifier"):
        PaCo.model_validate({**SPEC, "head": "cosine"})


def first_inputs(task, epoch):
    """Return what both encoders see first in an epoch."""
    seen = {}

    def watch(name):
        def note(module, arguments):
            seen.setdefault(name, arguments[0].clone())

        return note

    task.encoder.register_forward_pre_hook(watch("first"))
    task.key_encoder.register_forward_pre_hook(watch("second"))
    task.run_epoch(epoch, 0.0)
    return seen


def test_released_views_are_a_strong_and_a_contrasted_one(training_set):
    """What the encoders see: by the names of the streams that the views are drawn from."""
    task = task_of(training_set, views="cifar")
    seen = first_inputs(task, 4)
    order = epoch_order(training_set.labels, 10, "shuffle", generator(0, "order", 4))[:16]
    stored = next(training_set.batches.changed(order, 16, lambda batch: batch))
    views = two_views("cifar", (8, 8), "bilinear")
    for name, stream, view in zip(seen, ("augment", "second view"), views, strict=True):
        draws, choices = generator(0, stream, 4), generator(0, f"{stream} operations", 4)
        expected = (view(stored, draws, choices).float() / 255 - 0.3) / 0.4
        torch.testing.assert_close(seen[name], expected, rtol=1e-5, atol=1e-5)
    plain = task_of(training_set)
    assert not torch.allclose(first_inputs(plain, 4)["first"], seen["first"])
