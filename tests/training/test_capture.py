"""What is replayed is what was recorded, and what changed since is recorded anew."""

from __future__ import annotations

import functools
from typing import ClassVar

import pytest
import torch

from ltpipe.config.backbones import Backbone
from ltpipe.losses.building import build_loss
from ltpipe.models.resnet import resnet8
from ltpipe.training import engine
from ltpipe.training.capture import WARM_UP, CapturedStep
from ltpipe.training.engine import SupervisedTask, drain, epoch_steps, why_not_captured
from ltpipe.training.sgd import SGD
from tests.support import CE, CPU, KPS, draw, training_set


class Recorder:
    """Stands in for a GPU's: replaying does the recorded work, to the recorded result."""

    recorders: ClassVar[list[Recorder]] = []

    def __init__(self):
        self.recordings = self.replays = 0
        Recorder.recorders.append(self)

    def __call__(self, work):
        self.recordings += 1
        result = torch.full((2,), torch.nan)

        def replay():
            self.replays += 1
            result.copy_(work())

        return result, replay


@pytest.fixture(autouse=True)
def recorders(monkeypatch):
    monkeypatch.setattr(Recorder, "recorders", [])
    return Recorder.recorders


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return training_set(draw(tmp_path_factory.mktemp("capture")))


def fit(data, settings, captured):
    torch.manual_seed(0)
    settings = Backbone.model_validate({"epochs": 6, **settings})
    network = resnet8(10, settings.head, in_channels=1)
    loss = build_loss(settings.loss, data.class_counts)
    task = SupervisedTask(network, loss, data, settings, 0, CPU, captured=captured)
    if not captured:
        # Rounds as the recorded step does, so that the two can be compared bit by bit.
        task.rate = torch.zeros(())
    history = drain(epoch_steps(task, settings, len(data.labels)))
    return network.state_dict(), history


@pytest.mark.parametrize(
    ("settings", "recorders_used"),
    [
        ({**CE, "epochs": 6}, 1),
        ({**CE, "epochs": 6, "rule": {"name": "drw", "start": 4}}, 2),
        ({**KPS, "epochs": 6, "loss": {"name": "kps", "adjust_from": 4}}, 2),
    ],
)
def test_a_captured_run_is_the_plain_one(data, monkeypatch, recorders, settings, recorders_used):
    step = functools.partial(CapturedStep, recorder=Recorder)
    monkeypatch.setattr(engine, "CapturedStep", step)
    weights, history = fit(data, settings, captured=True)
    plain, expected = fit(data, settings, captured=False)
    assert all(torch.equal(weights[name], plain[name]) for name in plain)
    assert [record.loss for record in history] == [record.loss for record in expected]
    # A phase's own memory, and in it whole batches and the short last one.
    assert len(recorders) == recorders_used
    assert len(data.labels) % CE["batch_size"]
    assert all(recorder.recordings == 2 for recorder in recorders)
    batches = -(-len(data.labels) // CE["batch_size"])
    assert sum(recorder.replays for recorder in recorders) == 6 * batches - 2 * WARM_UP


def test_batches_are_read_where_they_were_recorded():
    values = {"scale": 1.0}
    addresses = set()

    def step(images, target):
        addresses.add((images.data_ptr(), target.data_ptr()))
        return torch.stack([values["scale"] * images.sum(), target.sum().float()])

    captured = CapturedStep(step, lambda: tuple(values.values()), Recorder)
    for number in range(10):
        images = torch.full((4, 2), float(number))
        target = torch.full((4,), number)
        assert captured(images, target).tolist() == [8 * number, 4 * number]
        if number == WARM_UP:
            addresses.clear()
    assert len(addresses) == 1
    values["scale"] = 2.0
    assert captured(torch.ones(4, 2), torch.ones(4).long()).tolist() == [16, 4]
    assert [recorder.recordings for recorder in Recorder.recorders] == [1, 1]


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_rate_in_a_tensor_is_the_number(nesterov, momentum):
    ends = []
    for rate in (0.1, torch.tensor(0.1)):
        torch.manual_seed(0)
        parameters = [torch.randn(3, 4, requires_grad=True), torch.randn(5, requires_grad=True)]
        optimizer = SGD(parameters, momentum=momentum, weight_decay=0.01, nesterov=nesterov)
        for _ in range(5):
            sum((p**3).sum() for p in parameters).backward()
            optimizer.step(rate)
        ends.append([p.detach().clone() for p in parameters] + optimizer.buffers)
    for ours, expected in zip(*ends, strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-6, rtol=1e-6)


def test_reasons_against_it():
    settings = Backbone.model_validate(CE)
    cuda = torch.device("cuda")
    assert "CUDA" in why_not_captured(settings, CPU)
    assert not why_not_captured(settings, cuda)
    assert "compile" in why_not_captured(settings.model_copy(update={"compile": True}), cuda)
    assert "mixup" in why_not_captured(settings.model_copy(update={"mixup": 0.5}), cuda)
