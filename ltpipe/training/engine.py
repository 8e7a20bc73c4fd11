"""The one epoch loop of stage one.

Images live on the device as bytes and are augmented there batch by batch; the loop never waits
for the device inside an epoch. Every epoch draws from streams of its own, so that a run that goes
on from a checkpoint ends with the weights of an unbroken one.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from ltpipe.config.backbones import Backbone
from ltpipe.data.augment import normalise
from ltpipe.data.loading import Pixels
from ltpipe.data.sampling import epoch_order
from ltpipe.errors import InputError
from ltpipe.losses.base import Loss
from ltpipe.models.building import place
from ltpipe.progress import say, track
from ltpipe.seeding import generator
from ltpipe.training.checkpoint import Checkpoint, copy_into
from ltpipe.training.devices import precision
from ltpipe.training.mixup import mixup, mixup_loss
from ltpipe.training.schedules import learning_rate
from ltpipe.training.sgd import SGD


class Batches(Protocol):
    """A stream of uint8 image batches, as ltpipe.data.images.open_batches gives it."""

    def epoch(
        self, order: Tensor, batch_size: int, generator: torch.Generator | None
    ) -> Iterator[Tensor]:
        """Yield (B, C, H, W) uint8 batches of the samples in `order`."""
        ...


@dataclass(frozen=True)
class Epoch:
    """One line of history: means over the epoch's samples; accuracy is that of training batches."""

    epoch: int
    learning_rate: float
    loss: float
    accuracy: float
    seconds: float


def train(
    network: nn.Module,
    loss: Loss,
    batches: Batches,
    labels: Tensor,
    settings: Backbone,
    *,
    pixels: Pixels,
    classes: int,
    seed: int,
    device: torch.device,
    checkpoint: Checkpoint | None = None,
    description: str = "training",
) -> list[Epoch]:
    """Train `network` in place and return its history; the last epoch's weights count.

    Args:
        network: maps (B, C, H, W) images to (B, classes) logits; on `device`.
        loss: maps logits and targets (B,) to a scalar; told of each epoch by `on_epoch`.
        batches: the training images, in the order of `labels`.
        labels: (N,) int64 on the CPU.
        checkpoint: where to leave the state every few epochs, and from where to go on.

    Raises:
        InputError: the loss is no longer a number.
    """
    network = place(network, device)
    loss.to(device)
    optimizer = SGD(
        network.parameters(),
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        nesterov=settings.nesterov,
    )
    dtype = precision(settings.precision, device)
    forward = torch.compile(network) if settings.compile else network
    history = _resume(network, optimizer, checkpoint)
    bar = track(range(len(history), settings.epochs), description, settings.epochs, len(history))
    for epoch in bar:
        rate = _rate(settings, epoch)
        started = time.perf_counter()
        loss.on_epoch(epoch)
        network.train()
        total, correct = _run_epoch(
            forward,
            loss,
            batches,
            labels,
            settings,
            optimizer,
            pixels=pixels,
            classes=classes,
            seed=seed,
            epoch=epoch,
            rate=rate,
            dtype=dtype,
            device=device,
        )
        record = Epoch(
            epoch, rate, total / len(labels), correct / len(labels), time.perf_counter() - started
        )
        if not math.isfinite(record.loss):
            raise InputError(
                f"{description}: the loss is {record.loss} after epoch {epoch}; the run does not "
                "converge with these settings (try a lower learning_rate or precision: fp32)"
            )
        history.append(record)
        bar.set_postfix(loss=f"{record.loss:.3f}", accuracy=f"{record.accuracy:.1%}")
        done = epoch + 1
        if checkpoint is not None and checkpoint.due(done) and done < settings.epochs:
            _save(network, optimizer, checkpoint, history)
    return history


def _rate(settings: Backbone, epoch: int) -> float:
    schedule = settings.schedule
    return learning_rate(
        schedule.kind,
        settings.learning_rate,
        epoch,
        settings.epochs,
        warmup=schedule.warmup,
        milestones=schedule.milestones,
        factors=schedule.factors,
    )


def _run_epoch(
    forward: Callable[[Tensor], Tensor],
    loss: Loss,
    batches: Batches,
    labels: Tensor,
    settings: Backbone,
    optimizer: SGD,
    *,
    pixels: Pixels,
    classes: int,
    seed: int,
    epoch: int,
    rate: float,
    dtype: torch.dtype,
    device: torch.device,
) -> tuple[float, float]:
    """Return the summed loss and the number of correct samples of one epoch."""
    order = epoch_order(labels, classes, settings.sampler, generator(seed, "order", epoch))
    targets = labels[order].to(device, non_blocking=True)
    images_stream = generator(seed, "augment", epoch, device=device)
    mixup_stream = generator(seed, "mixup", epoch)
    total = torch.zeros((), device=device)
    correct = torch.zeros((), device=device)
    autocast = (
        torch.autocast(device.type, dtype)
        if dtype is not torch.float32
        else contextlib.nullcontext()
    )
    start = 0
    for pixels_uint8 in batches.epoch(order, settings.batch_size, images_stream):
        target = targets[start : start + len(pixels_uint8)]
        start += len(pixels_uint8)
        images = normalise(pixels_uint8, pixels.mean, pixels.std, torch.float32)
        with autocast:
            if settings.mixup:
                images, partners, lam = mixup(images, mixup_stream, settings.mixup)
                logits = forward(images)
                value = mixup_loss(loss, logits, target, partners, lam)
            else:
                logits = forward(images)
                value = loss(logits, target)
        value.backward()
        optimizer.step(rate)
        total += value.detach() * len(target)
        correct += (logits.detach().argmax(1) == target).sum()
    return float(total), float(correct)


def _state(network: nn.Module, optimizer: SGD) -> dict[str, Tensor]:
    tensors = {f"network.{name}": tensor for name, tensor in network.state_dict().items()}
    momenta = {f"momentum.{i}": buffer for i, buffer in enumerate(optimizer.buffers)}
    return {**tensors, **momenta}


def _save(network: nn.Module, optimizer: SGD, checkpoint: Checkpoint, history: list[Epoch]) -> None:
    checkpoint.save(_state(network, optimizer), {"history": [asdict(record) for record in history]})


def _resume(network: nn.Module, optimizer: SGD, checkpoint: Checkpoint | None) -> list[Epoch]:
    found = checkpoint.load() if checkpoint is not None else None
    if found is None:
        return []
    tensors, state = found
    current = _state(network, optimizer)
    if set(current) != set(tensors):
        return []
    for name, tensor in current.items():
        copy_into(tensor, tensors[name])
    history = [Epoch(**record) for record in state["history"]]
    say(f"going on after epoch {len(history)} from {checkpoint.path if checkpoint else ''}")
    return history
