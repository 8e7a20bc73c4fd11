"""No training step waits for the device.

Torch's meta device stands in for a GPU: its tensors have shapes and no values, so nothing can be
read back from them, and copies to it are seen.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ltpipe.config.backbones import backbone_settings
from ltpipe.data import randaugment, two_views
from ltpipe.data.augment import Augmentation, _affine
from ltpipe.data.batches import ImageBatches
from ltpipe.data.images import ArrayImages
from ltpipe.data.loading import Pixels
from ltpipe.losses.building import build_loss
from ltpipe.models.resnet import resnet8
from ltpipe.stage1.cws import job as cws
from ltpipe.training import engine
from ltpipe.training.engine import SupervisedTask, TrainingSet
from tests.support import CE, KPS

META = torch.device("meta")
COUNTS = [20, 8, 4]
READS = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal")


class Waits(Exception):
    """The host would wait for the device."""


class NoWaits(TorchDispatchMode):
    """Refuses what makes a host wait for a GPU; counts the operations that it saw."""

    seen = 0
    moves = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func.name().removeprefix("aten::").partition(".")[0]
        on_device = any(isinstance(a, torch.Tensor) and a.device.type == "meta" for a in args)
        self.seen += on_device
        if name in READS and on_device:
            raise Waits(name)
        for index in args[1] if name == "index" else ():
            if index is not None and index.dtype is torch.bool:
                raise Waits("a boolean index")
        if name in ("_to_copy", "copy_"):
            self.check_copy(args, kwargs)
        return func(*args, **kwargs)

    def check_copy(self, args, kwargs):
        target = kwargs.get("device") or args[0].device
        source = args[1] if len(args) > 1 else args[0]
        if torch.device(target).type == source.device.type:
            return
        self.moves += 1
        if torch.device(target).type == "cpu" or not kwargs.get("non_blocking"):
            raise Waits(f"a copy from {source.device} to {target}")


@pytest.fixture
def meta(monkeypatch):
    """Let the meta device draw."""
    draw = torch.rand

    def rand(*size, generator=None, device=None, **options):
        # There is no generator on this device.
        return draw(*size, device=device, **options)

    def stream(seed, name, epoch, device="cpu"):
        device = torch.device(device)
        return SimpleNamespace(device=device) if device.type == "meta" else torch.Generator()

    monkeypatch.setattr(torch, "rand", rand)
    # There is no autocast there either, so full precision is full everywhere.
    monkeypatch.setattr(torch, "autocast", lambda *a, **k: contextlib.nullcontext())
    for module in (engine, cws):
        monkeypatch.setattr(module, "epoch_stream", stream)
    _affine.cache_clear()
    yield
    _affine.cache_clear()


def task(**settings):
    labels = torch.zeros(sum(COUNTS), dtype=torch.int64)
    images = np.zeros((len(labels), 32, 32, 3), np.uint8)
    plan = Augmentation((32, 32), padding=4, flip=True, color_jitter=0.4)
    batches = ImageBatches(ArrayImages(images), np.arange(len(labels)), plan, META, False)
    batches._stored = torch.empty(images.shape, dtype=torch.uint8, device=META)
    data = WatchedSet(batches, labels, Pixels([0.5] * 3, [0.2] * 3), COUNTS)
    chosen = backbone_settings({**CE, "precision": "fp32", **settings})
    subclasses = settings.get("subclasses")
    with META:
        network = resnet8(sum(subclasses or [1] * len(COUNTS)), chosen.head)
    if subclasses:
        return cws.SplittingTask(network, data, chosen, subclasses, 0, META)
    loss = build_loss(chosen.loss, COUNTS)
    return SupervisedTask(network, loss, data, chosen, 0, META)


class EndOfStep(Exception):
    """The watched step is done: what the epoch does after its steps is left out."""


@dataclass(frozen=True)
class WatchedSet(TrainingSet):
    """Watches an epoch's second step, from fetching its batch to the optimizer, and ends there."""

    watch: NoWaits = field(default_factory=NoWaits)

    def labelled(self, *arguments):
        batches = super().labelled(*arguments)
        yield next(batches)
        with self.watch:
            yield next(batches)
        raise EndOfStep


def run_steps(training, epoch):
    """Run two steps of an epoch, return how many operations the second one takes."""
    with pytest.raises(EndOfStep):
        training.run_epoch(epoch, 0.1)
    return training.data.watch.seen


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"rule": {"name": "cb-rw"}},
        {"loss": {"name": "focal"}, "rule": {"name": "drw", "start": 0}},
        {"head": "cosine", "loss": {"name": "ldam"}, "rule": {"name": "drw", "start": 0}},
        KPS | {"loss": {"name": "kps", "adjust_from": 0}},
        {"loss": {"name": "label-aware-smoothing"}},
        {"mixup": 1.0, "nesterov": True},
    ],
    ids=str,
)
def test_no_step_waits_for_the_device(meta, settings):
    assert run_steps(task(**settings), 0) > 150


@pytest.mark.parametrize(
    "change",
    [
        lambda images, draws: randaugment.rand_augment(
            images, torch.empty(len(images), device=META), draws
        ),
        two_views.rand_augment,
        two_views.auto_augment,
        lambda images, draws: two_views.cut_out(images, draws, 8),
    ],
    ids=["of ECVL", "of PaCo", "AutoAugment", "cut out"],
)
def test_what_is_drawn_for_a_batch_reaches_the_device_by_one_move(change):
    images = torch.empty((200, 3, 16, 16), dtype=torch.uint8, device=META)
    # Makes what is kept on the device.
    change(images, torch.Generator())
    with NoWaits() as watch:
        change(images, torch.Generator())
    assert watch.moves == 1


def test_clustering_over_the_whole_set_moves_nothing_in_a_step(meta):
    settings = {"system": "cws", "subclasses": [3, 2, 1], "scope": "epoch"}
    training = task(**settings)
    assert run_steps(training, 0) > 150
    assert training.data.watch.moves == 0


def test_a_step_that_waits_is_found_out(meta):
    training = task()
    value = training.loss.forward
    seen: list[float] = []
    training.loss.forward = lambda *batch: seen.append(value(*batch).mean().item()) or value(*batch)
    with pytest.raises((Waits, RuntimeError)):
        run_steps(training, 0)


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.cpu(),
        lambda x: x[x > 0],
        lambda x: (x > 0).nonzero(),
        lambda x: torch.zeros(3).to(x.device),
        lambda x: x.copy_(torch.zeros(3)),
    ],
)
def test_every_kind_of_wait_is_found_out(meta, wait):
    values = torch.zeros(3, device=META)
    with NoWaits(), pytest.raises((Waits, NotImplementedError)):
        wait(values)
