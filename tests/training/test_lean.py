"""Steps of fewer operators give the numbers of plain ones, and stay few."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ltpipe.config.backbones import backbone_settings
from ltpipe.data.augment import Augmentation
from ltpipe.data.batches import open_batches
from ltpipe.data.images import ArrayImages
from ltpipe.data.loading import Pixels
from ltpipe.losses.building import build_loss
from ltpipe.models.building import build_network
from ltpipe.models.vision_language import build_prompts, build_towers
from ltpipe.stage1.bbn import BilateralTask
from ltpipe.stage1.cws.job import SplittingTask
from ltpipe.stage1.hrjba import BranchTask
from ltpipe.stage1.paco import ContrastiveTask
from ltpipe.stage1.vision_language import RetrievalTask
from ltpipe.training.engine import SupervisedTask, TrainingSet
from tests.support import CE, CPU, TOWERS

COUNTS = [40, 16, 8]
PACO = {"queue": 50, "projection": 8}
# Operators that a step may dispatch: those of torch 2.13 and a few for other versions.
SYSTEMS: dict[str, tuple[dict[str, Any], int]] = {
    "resnet32": ({"network": "resnet32"}, 400),
    "supervised": ({}, 195),
    "mixup": ({"mixup": 1.0}, 215),
    "cosine": ({"head": "cosine", "loss": {"name": "ldam"}}, 240),
    "bbn": ({"system": "bbn", "network": "bbn-resnet8"}, 360),
    "cws": ({"system": "cws", "subclasses": [3, 2, 1]}, 260),
    "paco": ({"system": "paco", **PACO}, 400),
    "hrjba": ({"system": "hrjba-branch", "group": "head"}, 215),
    "towers": ({**TOWERS, "network": "small-vit"}, 710),
}


class Counter(TorchDispatchMode):
    """Counts the operators that are dispatched."""

    total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.total += 1
        return func(*args, **(kwargs or {}))


def task_of(system: str, precision: str, device: torch.device = CPU):
    given, _ = SYSTEMS[system]
    spec = {**CE, **given, "batch_size": 16, "precision": precision}
    if system in ("paco", "towers"):
        del spec["loss"]
    settings = backbone_settings(spec)
    draws = np.random.default_rng(0)
    labels = torch.arange(len(COUNTS)).repeat_interleave(torch.tensor(COUNTS))
    images = ArrayImages(draws.integers(0, 256, (len(labels), 16, 16, 3), np.uint8))
    plan = Augmentation((16, 16), padding=2, flip=True)
    batches = open_batches(images, np.arange(len(labels)), plan, device)
    data = TrainingSet(batches, labels, Pixels([0.5] * 3, [0.2] * 3), COUNTS)
    torch.manual_seed(0)
    outputs = {"cws": 6, "hrjba": 2}.get(system, len(COUNTS))
    if system == "towers":
        towers = build_towers(settings)
        prompts = build_prompts(towers, ["one", "two", "three"], settings)
        return RetrievalTask(towers, prompts, data, settings, 0, device)
    network = build_network(settings, outputs, 3)
    if system == "cws":
        return SplittingTask(network, data, settings, [3, 2, 1], 0, device)
    if system == "paco":
        return ContrastiveTask(network, data, settings, 0, device)
    loss = build_loss(settings.loss, COUNTS[:outputs])
    if system == "hrjba":
        return BranchTask(network, loss, data, settings, 0, device, [0, 1])
    kind = BilateralTask if system == "bbn" else SupervisedTask
    return kind(network, loss, data, settings, 0, device)


def trained(task) -> dict[str, torch.Tensor]:
    for epoch in range(2):
        with task.steps.epoch():
            task.run_epoch(epoch, 0.05)
    return task.state()


@pytest.mark.parametrize("system", [name for name in SYSTEMS if name != "resnet32"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_lean_steps_give_the_bytes_of_plain_ones(system, precision):
    plain = task_of(system, precision)
    plain.steps._is_plain = True
    expected, found = trained(plain), trained(task_of(system, precision))
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor, found[name]), name
        if name.endswith("num_batches_tracked"):
            assert int(tensor) > 0


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_step_dispatches_few_operators(system, precision):
    task, counter = task_of(system, precision), Counter()
    step, marks = task.optimizer.step, []

    def marked(rate):
        step(rate)
        marks.append(counter.total)

    task.optimizer.step = marked
    with counter, task.steps.epoch():
        task.run_epoch(0, 0.05)
    # The first step makes what later ones keep.
    assert marks[2] - marks[1] <= SYSTEMS[system][1]


def test_outside_of_an_epoch_the_network_is_in_full_precision():
    task = task_of("supervised", "bf16")
    weight = task.network.conv.weight
    with task.steps.epoch():
        assert task.network.conv.weight.dtype is torch.bfloat16
        assert task.network.bn.num_batches_tracked is None
    assert task.network.conv.weight is weight
    with pytest.raises(RuntimeError), task.steps.epoch():
        raise RuntimeError
    assert task.network.conv.weight is weight
    assert int(task.network.bn.num_batches_tracked) == 0
