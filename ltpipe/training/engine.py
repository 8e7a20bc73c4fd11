"""The one epoch loop of stage one, and the plain supervised task in it.

Images live on the device as bytes and are augmented there batch by batch; the loop never waits
for the device inside an epoch. Every epoch draws from streams of its own, so that a run that goes
on from a checkpoint ends with the weights of an unbroken one.
"""

from __future__ import annotations

import contextlib
import functools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from ltpipe.config.backbones import Backbone, BackboneSettings
from ltpipe.data.augment import Augmentation, normalise
from ltpipe.data.loading import Pixels
from ltpipe.data.sampling import epoch_order
from ltpipe.losses.base import Loss
from ltpipe.models.building import place
from ltpipe.training import distributed
from ltpipe.training.checkpoint import Checkpoint, copy_into
from ltpipe.training.compiling import compiled
from ltpipe.training.devices import precision
from ltpipe.training.lean import Steps
from ltpipe.training.mixup import mixup, mixup_loss
from ltpipe.training.optimizers import SGD
from ltpipe.training.rules import Phase, on_device, phases
from ltpipe.training.schedules import learning_rate
from ltpipe.utils.progress import say, track
from ltpipe.utils.seeding import generator

T = TypeVar("T")


class HasBuffers(Protocol):
    """An optimizer whose state is a list of tensors."""

    @property
    def buffers(self) -> list[Tensor]:
        """What it keeps from step to step."""
        ...


class Batches(Protocol):
    """A stream of uint8 image batches, as ltpipe.data.batches.open_batches gives it."""

    augmentation: Augmentation

    def epoch(
        self, order: Tensor, batch_size: int, generator: torch.Generator | None
    ) -> Iterator[Tensor]:
        """Yield (B, C, H, W) uint8 batches of the samples in `order`."""
        ...

    def changed(self, order: Tensor, batch_size: int, change: Callable[[Tensor], T]) -> Iterator[T]:
        """Yield what `change` makes of (B, H, W, C) uint8 batches of stored images."""
        ...


@dataclass(frozen=True)
class TrainingSet:
    """The images to train on: batches, labels (N,) int64 on the CPU, statistics, class counts."""

    batches: Batches
    labels: Tensor
    pixels: Pixels
    class_counts: list[int]

    def labelled(
        self, order: Tensor, batch_size: int, draws: torch.Generator, device: torch.device
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield normalised images (B, C, H, W) float32 and targets (B,) of the samples in order."""
        targets = self.labels[order].to(device, non_blocking=True)
        start = 0
        for batch in self.batches.epoch(order, batch_size, draws):
            images = normalise(batch, self.pixels.mean, self.pixels.std, torch.float32)
            yield images, targets[start : start + len(images)]
            start += len(images)


@dataclass(frozen=True)
class Epoch:
    """One line of history: means over the epoch's samples; accuracy is that of training batches."""

    epoch: int
    learning_rate: float
    loss: float
    accuracy: float
    seconds: float


class Task(Protocol):
    """One way of training, an epoch at a time."""

    steps: Steps

    def run_epoch(self, epoch: int, rate: float) -> tuple[float, float]:
        """Train for one epoch; return the summed loss and the number of correct samples."""
        ...

    def state(self) -> dict[str, Tensor]:
        """Return every tensor that a resumed run has to find again, to be copied into."""
        ...


def run_epochs(
    task: Task,
    rates: Sequence[float],
    samples: int,
    *,
    checkpoint: Checkpoint | None = None,
    description: str = "training",
) -> list[Epoch]:
    """Run all epochs of `task`; the last epoch's weights count.

    A run whose loss is no longer a number ends there: its history's last loss is not finite.

    Args:
        rates: the learning rate of each epoch, as many as there are to be.
        samples: how many samples an epoch sees, by which its sums are divided.
        checkpoint: where to leave the state every few epochs, and from where to go on.

    Returns:
        The history.
    """
    history = _resume(task, checkpoint)
    epochs = len(rates)
    bar = track(range(len(history), epochs), description, epochs, len(history), every=True)
    for epoch in bar:
        rate = rates[epoch]
        started = time.perf_counter()
        with task.steps.epoch():
            total, correct = task.run_epoch(epoch, rate)
        record = Epoch(
            epoch, rate, total / samples, correct / samples, time.perf_counter() - started
        )
        history.append(record)
        if not math.isfinite(record.loss):
            break
        bar.set_postfix(loss=f"{record.loss:.3f}", accuracy=f"{record.accuracy:.1%}")
        done = epoch + 1
        wanted = checkpoint is not None and checkpoint.due(done) and done < epochs
        if checkpoint is not None and wanted and distributed.rank() == 0:
            checkpoint.save(task.state(), {"history": [asdict(record) for record in history]})
    return history


def train(
    network: nn.Module,
    loss: Loss,
    data: TrainingSet,
    settings: Backbone,
    *,
    seed: int,
    device: torch.device,
    checkpoint: Checkpoint | None = None,
    description: str = "training",
) -> list[Epoch]:
    """Train `network` in place under `loss` and the settings' rule; see `run_epochs`.

    Args:
        network: maps (B, C, H, W) images to (B, classes) outputs.
        loss: maps outputs and targets (B,) to a scalar; told of each epoch by `on_epoch`.
    """
    task = SupervisedTask(network, loss, data, settings, seed, device)
    samples = len(data.labels)
    rates = learning_rates(settings)
    return run_epochs(task, rates, samples, checkpoint=checkpoint, description=description)


class NetworkTask:
    """What the ways of training one network under one loss share."""

    def __init__(
        self,
        network: nn.Module,
        loss: Loss,
        data: TrainingSet,
        settings: Any,
        seed: int,
        device: torch.device,
    ) -> None:
        self.network = place(network, device)
        self.loss = loss.to(device)
        self.data = data
        self.settings = settings
        self.seed = seed
        self.device = device
        self.autocast = functools.partial(autocast, settings, device)
        self.optimizer = build_optimizer([self.network], settings)
        self.forward = forward_of(self.network, settings, device)
        dtype = precision(settings.precision, device, "training")
        self.steps = Steps(self.network, self.optimizer, dtype, settings.compile)

    def state(self) -> dict[str, Tensor]:
        return training_state(self.network, self.optimizer)


class SupervisedTask(NetworkTask):
    """A network, a loss, a rebalancing rule, and mixup where it is asked for."""

    def run_epoch(self, epoch: int, rate: float) -> tuple[float, float]:
        phase = self.phases[epoch]
        self.loss.reweight(phase.weights)
        self.loss.on_epoch(epoch)
        self.network.train()
        mixup_stream = epoch_stream(self.seed, "mixup", epoch)
        draws = generator(self.seed, "order", epoch)
        classes = len(self.data.class_counts)
        order = epoch_order(self.data.labels, classes, phase.sampler, draws)
        order, batch_size = distributed.share(order, self.settings.batch_size)
        images_stream = epoch_stream(self.seed, "augment", epoch, self.device)
        sums = torch.zeros(2, device=self.device)
        for images, target in self.data.labelled(order, batch_size, images_stream, self.device):
            sums += self._step(images, target, rate, mixup_stream)
        total, correct = distributed.all_sum(sums).tolist()
        return total, correct

    def _step(
        self, images: Tensor, target: Tensor, rate: float, mixup_stream: torch.Generator
    ) -> Tensor:
        """Train on one batch and return its sums."""
        criterion = functools.partial(distributed.joint_loss, self.loss)
        with self.autocast():
            if self.settings.mixup:
                images, partners, lam = mixup(images, mixup_stream, self.settings.mixup)
                logits = self.forward(images)
                value = mixup_loss(criterion, logits, target, partners, lam)
            else:
                logits = self.forward(images)
                value = criterion(logits, target)
        self.steps.descend(value, rate)
        return batch_sums(value, logits, target)

    @functools.cached_property
    def phases(self) -> list[Phase]:
        """What the rule does in each epoch, its weights on the device."""
        found = phases(self.settings.rule, self.data.class_counts, self.settings.epochs)
        return on_device(found, self.device)


@torch.no_grad()
def batch_sums(value: Tensor, logits: Tensor, target: Tensor) -> Tensor:
    """Return (summed loss, correct samples) of one batch, left on its device."""
    correct = (logits.argmax(1) == target).sum()
    return torch.stack([value * len(target), correct.to(value.dtype)])


def epoch_stream(
    seed: int, name: str, epoch: int, device: torch.device | str = "cpu"
) -> torch.Generator:
    """Return the stream `name` of an epoch; each of several processes has its own."""
    names = (name, epoch) if distributed.size() == 1 else (name, epoch, distributed.rank())
    return generator(seed, *names, device=device)


def autocast(settings: BackboneSettings, device: torch.device) -> Any:
    """Return the context in which forward passes and losses run."""
    return autocast_to(precision(settings.precision, device, "training"), device)


def autocast_to(dtype: torch.dtype, device: torch.device) -> Any:
    """Return the context in which products are computed in `dtype`."""
    if dtype is torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype)


def build_optimizer(modules: list[nn.Module], settings: BackboneSettings) -> SGD:
    """Return the settings' SGD over all parameters of `modules`."""
    return SGD(
        [parameter for module in modules for parameter in module.parameters()],
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        nesterov=settings.nesterov,
    )


def forward_of(network: nn.Module, settings: BackboneSettings, device: torch.device) -> Any:
    """Return what to call on images: the network, wrapped for several processes, compiled."""
    wrapped = distributed.wrap(network, device)
    return compiled(wrapped, device) if settings.compile else wrapped


def training_state(network: nn.Module, optimizer: HasBuffers) -> dict[str, Tensor]:
    """Return the tensors of a network and its optimizer by name."""
    tensors = {f"network.{name}": tensor for name, tensor in network.state_dict().items()}
    momenta = {f"momentum.{i}": buffer for i, buffer in enumerate(optimizer.buffers)}
    return {**tensors, **momenta}


def learning_rates(settings: BackboneSettings) -> list[float]:
    """Return the learning rate of each epoch by the settings' schedule."""
    schedule = settings.schedule
    return [
        learning_rate(
            schedule.kind,
            settings.learning_rate,
            epoch,
            settings.epochs,
            warmup=schedule.warmup,
            warmup_start=schedule.warmup_start,
            milestones=schedule.milestones,
            factors=schedule.factors,
        )
        for epoch in range(settings.epochs)
    ]


def _resume(task: Task, checkpoint: Checkpoint | None) -> list[Epoch]:
    found = checkpoint.load() if checkpoint is not None else None
    if found is None:
        return []
    tensors, state = found
    current = task.state()
    if set(current) != set(tensors):
        return []
    for name, tensor in current.items():
        copy_into(tensor, tensors[name])
    history = [Epoch(**record) for record in state["history"]]
    say(f"going on after epoch {len(history)} from {checkpoint.path if checkpoint else ''}")
    return history
