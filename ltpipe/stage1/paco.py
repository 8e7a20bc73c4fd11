"""PaCo: parametric contrastive learning with a momentum encoder and class centres.

Cui et al., "Parametric Contrastive Learning", ICCV 2021. The classifier's rows are the centres,
its training logits carry the log prior, and queries meet keys of a slowly following copy of the
network and a queue of earlier keys. What is kept is the network with its classifier; the
two views of an image are draws of the data set's own augmentation, or those of the released code.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ltpipe.artifacts.job import Job
from ltpipe.config.backbones import PaCo
from ltpipe.data.augment import augment, normalise
from ltpipe.data.sampling import epoch_order
from ltpipe.data.two_views import View, two_views
from ltpipe.losses.base import checked_counts
from ltpipe.losses.contrastive import paco_loss
from ltpipe.models.building import place
from ltpipe.stage1.job import open_training, train_task
from ltpipe.training import distributed
from ltpipe.training.compiling import compiled
from ltpipe.training.devices import precision
from ltpipe.training.engine import (
    TrainingSet,
    autocast,
    batch_sums,
    build_optimizer,
    training_state,
)
from ltpipe.training.lean import Steps
from ltpipe.utils.errors import InputError
from ltpipe.utils.seeding import generator


def run(job: Job) -> dict[str, Any]:
    """Train the network of `job.spec`; files and inputs are those of supervised training.

    Raises:
        InputError: several processes are to train it.
    """
    if distributed.size() > 1:
        raise InputError("system paco trains in one process: its queue is not shared")
    training = open_training(job)
    task = ContrastiveTask(training.network, training.data, training.settings, job.seed, job.device)
    return train_task(job, training, task)


class Encoder(nn.Module):
    """A network and a projection of its features to unit vectors.

    The projection has one hidden layer with BatchNorm; it is dropped after training.
    """

    def __init__(self, network: Any, width: int) -> None:
        super().__init__()
        self.network = network
        dim = network.feature_dim
        self.projection = nn.Sequential(
            nn.Linear(dim, dim, bias=False), nn.BatchNorm1d(dim), nn.ReLU(), nn.Linear(dim, width)
        )

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return classifier outputs (B, C) and unit vectors (B, width)."""
        features = self.network.features(images)
        return self.network.head(features), F.normalize(self.projection(features).float(), dim=1)


class ContrastiveTask:
    """Queries against centres, keys and a queue."""

    def __init__(
        self,
        network: nn.Module,
        data: TrainingSet,
        settings: PaCo,
        seed: int,
        device: torch.device,
    ) -> None:
        self.encoder = place(Encoder(network, settings.projection), device)
        self.key_encoder = copy.deepcopy(self.encoder).requires_grad_(False)
        self.data = data
        self.settings = settings
        self.seed = seed
        self.device = device
        self.autocast = functools.partial(autocast, settings, device)
        self.optimizer = build_optimizer([self.encoder], settings)
        dtype = precision(settings.precision, device, "training")
        self.steps = Steps(self.encoder, self.optimizer, dtype, bool(settings.compile))
        self.followed = [parameter.detach() for parameter in self.encoder.parameters()]
        self.forward = compiled(self.encoder, device) if settings.compile else self.encoder
        counts = checked_counts(data.class_counts)
        self.log_prior = (counts / counts.sum()).log().float().to(device)
        self.queue = torch.zeros(settings.queue, settings.projection, device=device)
        self.queue_target = torch.zeros(settings.queue, dtype=torch.int64, device=device)
        # Where the next key goes, and how many are there: kept on the host, so nothing waits.
        self.position = torch.zeros(2, dtype=torch.int64)

    def run_epoch(self, epoch: int, rate: float) -> tuple[float, float]:
        settings = self.settings
        self.encoder.train()
        self.key_encoder.train()
        classes = len(self.data.class_counts)
        order = epoch_order(
            self.data.labels, classes, "shuffle", generator(self.seed, "order", epoch)
        )
        targets = self.data.labels[order].to(self.device, non_blocking=True)
        pairs = self._pairs(order, epoch)
        sums = torch.zeros(2, device=self.device)
        for (images, second), target in zip(pairs, targets.split(settings.batch_size), strict=True):
            if len(target) < 2:
                # A batch of one has no variance for the projection's BatchNorm.
                continue
            with self.autocast():
                outputs, queries = self.forward(images)
                with torch.no_grad():
                    self._follow()
                    keys = self.key_encoder(second)[1]
            filled = int(self.position[1])
            value = paco_loss(
                (outputs.float() + self.log_prior) / settings.centre_temperature,
                queries,
                keys,
                self.queue[:filled],
                target,
                self.queue_target[:filled],
                alpha=settings.alpha,
                centre_weight=settings.centre_weight,
                temperature=settings.temperature,
            )
            self.steps.descend(value, rate)
            self._enqueue(keys, target)
            sums += batch_sums(value, outputs, target)
        total, correct = sums.tolist()
        return total, correct

    def _pairs(self, order: Tensor, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield both views of each batch, normalised (B, C, H, W) float32."""
        names = ("augment", "second view")
        draws = [generator(self.seed, name, epoch, device=self.device) for name in names]
        choices = [generator(self.seed, f"{name} operations", epoch) for name in names]
        plan, pixels = self.data.batches.augmentation, self.data.pixels
        if self.settings.views == "dataset":
            views: list[View] = [lambda batch, drawn, _: augment(batch, plan, drawn)] * 2
        else:
            views = list(two_views(self.settings.views, plan.size, plan.interpolation))

        def pair(batch: Tensor) -> tuple[Tensor, Tensor]:
            first, second = (
                normalise(view(batch, drawn, chosen), pixels.mean, pixels.std, torch.float32)
                for view, drawn, chosen in zip(views, draws, choices, strict=True)
            )
            return first, second

        return self.data.batches.changed(order, self.settings.batch_size, pair)

    def _follow(self) -> None:
        """Move the key encoder's weights a little towards the encoder's."""
        torch._foreach_lerp_(
            list(self.key_encoder.parameters()),
            self.followed,
            1 - self.settings.encoder_momentum,
        )

    def _enqueue(self, keys: Tensor, target: Tensor) -> None:
        """Put keys where the oldest are."""
        capacity = len(self.queue)
        if not capacity:
            return
        start, filled = self.position.tolist()
        kept = min(len(keys), capacity)
        slots = (torch.arange(kept, device=self.device) + start) % capacity
        self.queue[slots] = keys[-kept:].detach()
        self.queue_target[slots] = target[-kept:]
        self.position[0] = (start + kept) % capacity
        self.position[1] = min(filled + kept, capacity)

    def state(self) -> dict[str, Tensor]:
        followers = {f"keys.{name}": value for name, value in self.key_encoder.state_dict().items()}
        queue = {"queue": self.queue, "queue_target": self.queue_target, "position": self.position}
        return {**training_state(self.encoder, self.optimizer), **followers, **queue}
