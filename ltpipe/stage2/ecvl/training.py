"""ECVL's phase II: the training of adapters on views of images."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ltpipe.data.sampling import Cycles, epoch_order
from ltpipe.stage2.core.fit import Recipe
from ltpipe.stage2.ecvl.adapter import Adapter
from ltpipe.stage2.ecvl.losses import instance_contrast, text_gradient
from ltpipe.stage2.ecvl.memory import Memory, memory_order
from ltpipe.training.optimizers import SGD, AdamW
from ltpipe.training.schedules import learning_rate
from ltpipe.utils.progress import track
from ltpipe.utils.seeding import generator

# Which samples (P, B), their classes (P, B), and K views of each (P, K, B, D).
Batch = tuple[Tensor, Tensor, Tensor]


class Views(Protocol):
    """Where an epoch's views come from: the cache, or the images."""

    def epoch(
        self,
        order: Tensor,
        memory: Tensor | None,
        views: int,
        batch_size: int,
        draws: torch.Generator,
    ) -> Iterator[Batch]:
        """Yield batches; see `CachedViews.epoch`."""
        ...


@dataclass(frozen=True)
class Texts:
    """The classes' texts as unit vectors (C, D), and by what cosines with them are multiplied."""

    units: Tensor
    scale: float


@dataclass(frozen=True)
class Contrast:
    """The contrast of two views: its weight mu in each sweep point's loss, and its temperature."""

    weights: Sequence[float]
    temperature: float


@dataclass(frozen=True)
class MemoryUse:
    """What samples' memory is for, and how it is kept.

    `strength`: views are as strong as the memory asks for; `sampling`: a class's samples are drawn
    by it; `all_samples`: every sample is measured once an epoch and not those that were drawn.
    """

    strength: bool
    sampling: bool
    all_samples: bool


@dataclass(frozen=True)
class Sampled:
    """The training samples' labels (N,) on the CPU, and how epochs draw them."""

    labels: Tensor
    classes: int
    sampler: str
    per_class: int


class Phase2:
    """The adapters' training: texts, and where asked for the contrast of views, and memory.

    Args:
        optimizer: of what the adapter trains.
        contrast: None for one view of each image and no contrast.
        memory: kept where given, by the contrast.
        use: what it is for.
    """

    def __init__(
        self,
        samples: Sampled,
        source: Views,
        adapter: Adapter,
        texts: Texts,
        recipe: Recipe,
        optimizer: AdamW | SGD,
        seed: int,
        device: torch.device,
        *,
        contrast: Contrast | None = None,
        memory: Memory | None = None,
        use: MemoryUse | None = None,
    ) -> None:
        self.samples = samples
        self.source = source
        self.adapter = adapter
        self.texts = texts
        self.recipe = recipe
        self.optimizer = optimizer
        self.seed = seed
        self.device = device
        self.points = len(adapter.share)
        self.contrast = contrast
        self.views = 1 if contrast is None else 2
        if contrast is not None:
            self.mu = torch.tensor(contrast.weights, device=device).view(-1, 1, 1)
        self.memory = memory
        self.use = use or MemoryUse(strength=False, sampling=False, all_samples=False)
        self.cycles: Cycles | None = None
        if samples.sampler == "cycle":
            self.cycles = Cycles(samples.labels, samples.classes, samples.per_class)

    def run(self) -> float:
        """Train all epochs; return the seconds they took."""
        recipe = self.recipe
        assert isinstance(recipe.learning_rate, float)
        started = time.perf_counter()
        for epoch in track(range(recipe.epochs), f"adapter, {self.points} models"):
            share = learning_rate(recipe.schedule, 1.0, epoch, recipe.epochs)
            self.run_epoch(epoch, share * recipe.learning_rate)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter() - started

    # Half of a small step is the calls of its operators, which cost less without autograd's part.
    @torch.inference_mode()
    def run_epoch(self, epoch: int, rate: float) -> None:
        """Train for one epoch; nothing in it waits for the device."""
        memory = None if self.memory is None else self.memory.values()
        order = self._order(epoch, memory)
        asked = memory if self.use.strength else None
        draws = generator(self.seed, "views", epoch)
        size = self.recipe.batch_size
        for index, target, features in self.source.epoch(order, asked, self.views, size, draws):
            self._step(index, target, features, rate)
        if self.memory is not None:
            if self.use.all_samples:
                self._measure_all(epoch, asked)
            self.memory.end_epoch()

    def _step(self, index: Tensor, target: Tensor, features: Tensor, rate: float) -> None:
        adapted = self.adapter.units(features.flatten(1, 2))
        batch = target.shape[1]
        if self.contrast is not None:
            losses, by_units = instance_contrast(adapted.units, index, self.contrast.temperature)
            by_units.mul_(self.mu)
            if self.memory is not None and not self.use.all_samples:
                self.memory.add(index, losses)
        else:
            by_units = torch.zeros_like(adapted.units)
        texts = self.texts
        by_text = text_gradient(adapted.units[:, :batch], texts.units, target, texts.scale)
        by_units[:, :batch].add_(by_text)
        self.adapter.backward(adapted, by_units)
        self.optimizer.step(rate)

    def _order(self, epoch: int, memory: Tensor | None) -> Tensor:
        """Return which samples the epoch visits, (P, T) on the CPU."""
        samples = self.samples
        if memory is not None and self.use.sampling:
            orders = [
                memory_order(
                    samples.labels,
                    row,
                    samples.classes,
                    samples.per_class,
                    generator(self.seed, "stage2", epoch),
                )
                for row in memory.cpu()
            ]
            return torch.stack(orders)
        draws = generator(self.seed, "stage2", epoch)
        if self.cycles is not None:
            return self.cycles.epoch(draws).expand(self.points, -1)
        order = epoch_order(
            samples.labels, samples.classes, samples.sampler, draws, samples.per_class
        )
        return order.expand(self.points, -1)

    def _measure_all(self, epoch: int, asked: Tensor | None) -> None:
        """Measure every image's contrastive loss once, with the epoch's last weights."""
        assert self.memory is not None
        assert self.contrast is not None
        number = len(self.samples.labels)
        order = torch.randperm(number, generator=generator(self.seed, "measure", epoch))
        draws = generator(self.seed, "measured views", epoch)
        rows = order.expand(self.points, -1)
        batches = self.source.epoch(rows, asked, 2, self.recipe.batch_size, draws)
        for index, _, features in batches:
            units = self.adapter.units(features.flatten(1, 2)).units
            self.memory.add(index, instance_contrast(units, index, self.contrast.temperature)[0])
