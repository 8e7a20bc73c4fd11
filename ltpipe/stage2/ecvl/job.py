"""ECVL's phase II: an adapter on frozen towers, and with everything added off BALLAD.

A linear adapter changes image features, class-balanced samples meet the prompts of all classes
(Ma et al., "A Simple Long-Tailed Recognition Baseline via Vision-Language Model", 2021). ECVL adds
a contrastive loss between two views of an image, and RandAugment whose strength follows each
sample's memory. Views come from the cached ladder, where an epoch is a few matrix products.
"""

from __future__ import annotations

import importlib
import time
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ltpipe.artifacts.job import Job
from ltpipe.data.sampling import epoch_order
from ltpipe.features.store import FeatureStore
from ltpipe.stage2.core.heads import random_linear
from ltpipe.stage2.core.inference import Fitted, Samples
from ltpipe.stage2.core.one_backbone import finish, open_features
from ltpipe.stage2.core.texts import class_texts, text_logits, towers_of
from ltpipe.stage2.ecvl.ladder import CachedViews
from ltpipe.stage2.ecvl.losses import instance_contrast
from ltpipe.stage2.ecvl.memory import Memory
from ltpipe.stage2.ecvl.settings import ECVL
from ltpipe.training.optimizers import SGD, AdamW
from ltpipe.training.schedules import learning_rate
from ltpipe.utils.progress import track
from ltpipe.utils.seeding import generator


class Views(Protocol):
    """Where an epoch's views come from: the cache, or the images."""

    def epoch(
        self,
        order: Tensor,
        memory: Tensor | None,
        views: int,
        batch_size: int,
        draws: torch.Generator,
    ) -> Any:
        """Yield batches; see `CachedViews.epoch`."""
        ...


def run(job: Job) -> dict[str, Any]:
    """Fit the adapters of all points at once and evaluate their last epoch.

    `job.inputs` has the store `features.features`; with `online: true` also the towers and images.
    """
    features = open_features(job, ECVL)
    settings, train = features.settings, features.train
    text, scale = class_texts(train)
    text = text.to(job.device)
    source = _source(job, settings, train)
    adapter = Adapter(settings, train.features.shape[1], job.spec["seed"], job.device)
    fit = Phase2(settings, train, source, adapter, text, scale, job.spec["seed"], job.device)
    seconds = fit.run()
    weights = {**adapter.weights(), "share": adapter.share.view(-1)}
    if fit.memory is not None:
        weights["memory"] = fit.memory.scores()
    facts: dict[str, Any] = {
        "seconds_per_epoch": round(seconds / settings.epochs, 6),
        "online": settings.online,
    }
    return finish(job, features, logits, weights, towers=towers_of(train), **facts)


def logits(fitted: Fitted[ECVL], samples: Samples) -> Tensor:
    """Return the scaled cosines (N, C) of adapted features with the classes' texts."""
    text, scale = class_texts(samples["features"])
    weights, relu = fitted.weights, fitted.settings.adapter.relu
    share = weights["share"].view(1, 1)
    features = samples["features"].features
    adapted = adapt(features, weights["weight"], weights.get("bias"), share, relu)
    return text_logits(adapted, text, scale)


@torch.no_grad()
def adapt(
    features: Tensor, weight: Tensor, bias: Tensor | None, share: Tensor, relu: bool
) -> Tensor:
    """Return features (N, D) as one adapter changes them, not of unit length."""
    hidden = features @ weight.T
    if bias is not None:
        hidden += bias
    if relu:
        hidden.relu_()
    return torch.lerp(features, hidden, share)


def _source(job: Job, settings: ECVL, train: FeatureStore) -> Views:
    if settings.online:
        # Imported only here: whoever uses the cache does not depend on how images are run.
        online = importlib.import_module("ltpipe.stage2.ecvl.online")
        return online.OnlineViews(job, settings, train)
    return CachedViews(
        train, job.device, plain=settings.views == "plain", ladder=settings.randaugment
    )


class Adapted(NamedTuple):
    """Features (P, B, D), what the adapter's layer made of them, and the result of unit length."""

    features: Tensor
    hidden: Tensor
    units: Tensor
    norms: Tensor


class Adapter:
    """``lambda ReLU(W f + b) + (1 - lambda) f`` for P models (eq. 7 without its loss factor).

    Its gradients are by hand: autograd's overhead would be most of a small step.
    """

    def __init__(self, settings: ECVL, dimension: int, seed: int, device: torch.device) -> None:
        points = settings.points()
        weight, bias = random_linear(dimension, dimension, generator(seed, "adapter"))
        stacked = weight.expand(len(points), -1, -1).to(device, copy=True)
        self.weight = stacked.requires_grad_()
        self.bias: Tensor | None = None
        if settings.adapter.bias:
            self.bias = bias.expand(len(points), -1).to(device, copy=True).requires_grad_()
        self.relu = settings.adapter.relu
        shares = [point.get("lambda", settings.adapter.share) for point in points]
        self.share = torch.tensor(shares, device=device).view(-1, 1, 1)

    @torch.no_grad()
    def units(self, features: Tensor) -> Adapted:
        """Return adapted features of unit length from features (P, B, D)."""
        hidden = torch.bmm(features, self.weight.transpose(1, 2))
        if self.bias is not None:
            hidden += self.bias.unsqueeze(1)
        if self.relu:
            hidden.relu_()
        adapted = torch.lerp(features, hidden, self.share)
        norms = torch.linalg.vector_norm(adapted, dim=-1, keepdim=True).clamp_min_(1e-12)
        return Adapted(features, hidden, adapted.div_(norms), norms)

    @torch.no_grad()
    def backward(self, adapted: Adapted, by_units: Tensor) -> None:
        """Leave the gradients of what has the gradient `by_units` (P, B, D) by the unit vectors."""
        units = adapted.units
        radial = torch.linalg.vecdot(by_units, units).unsqueeze(-1)
        by_hidden = torch.addcmul(by_units, radial, units, value=-1).div_(adapted.norms)
        by_hidden.mul_(self.share)
        if self.relu:
            by_hidden.mul_(adapted.hidden.sign())
        self.weight.grad = torch.bmm(by_hidden.transpose(1, 2), adapted.features)
        if self.bias is not None:
            self.bias.grad = by_hidden.sum(1)

    @torch.no_grad()
    def at(self, place: int, features: Tensor) -> Tensor:
        """Return features (N, D) as one point adapts them, not of unit length."""
        bias = None if self.bias is None else self.bias[place]
        return adapt(features, self.weight[place], bias, self.share[place], self.relu)

    def weights(self) -> dict[str, Tensor]:
        """Return what is trained, the points along the first axis."""
        found = {"weight": self.weight.detach()}
        return found if self.bias is None else {**found, "bias": self.bias.detach()}


class Phase2:
    """The adapters' training: texts, and where asked for the contrast of views, and memory."""

    def __init__(
        self,
        settings: ECVL,
        train: FeatureStore,
        source: Views,
        adapter: Adapter,
        text: Tensor,
        scale: float,
        seed: int,
        device: torch.device,
    ) -> None:
        self.settings = settings
        self.source = source
        self.adapter = adapter
        self.text = text
        self.scale = scale
        self.seed = seed
        self.device = device
        self.labels = torch.from_numpy(train.labels)
        self.classes = len(train.class_names)
        self.points = settings.points()
        measured = settings.is_measured()
        self.views = 2 if settings.momentum or measured else 1
        # Without the momentum loss the contrast is measured and not trained on.
        weights = [point.get("mu", settings.mu) for point in self.points]
        self.mu = torch.tensor(weights, device=device).view(-1, 1, 1) * settings.momentum
        self.memory: Memory | None = None
        if measured:
            self.memory = Memory(
                len(self.points),
                len(self.labels),
                settings.beta,
                signed=settings.deviation == "signed",
                device=device,
            )
        trained = [value for value in (adapter.weight, adapter.bias) if value is not None]
        self.optimizer: AdamW | SGD
        if settings.optimizer == "adamw":
            self.optimizer = AdamW(trained, weight_decay=settings.weight_decay)
        else:
            self.optimizer = SGD(
                trained, momentum=settings.sgd_momentum, weight_decay=settings.weight_decay
            )

    def run(self) -> float:
        """Train all epochs; return the seconds they took."""
        settings = self.settings
        started = time.perf_counter()
        for epoch in track(range(settings.epochs), f"adapter, {len(self.points)} points"):
            share = learning_rate(settings.schedule, 1.0, epoch, settings.epochs)
            self.run_epoch(epoch, share * settings.learning_rate)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter() - started

    # Half of a small step is the calls of its operators, which cost less without autograd's part.
    @torch.inference_mode()
    def run_epoch(self, epoch: int, rate: float) -> None:
        """Train for one epoch; nothing in it waits for the device."""
        settings = self.settings
        scores = self.memory.scores() if self.memory is not None else None
        order = self._order(epoch, scores)
        asked = scores if settings.randaugment else None
        draws = generator(self.seed, "views", epoch)
        size = settings.batch_size
        for index, target, features in self.source.epoch(order, asked, self.views, size, draws):
            self._step(index, target, features, rate)
        if self.memory is not None:
            if settings.memory_update == "all":
                self._measure_all(epoch, asked)
            self.memory.end_epoch()

    def _step(self, index: Tensor, target: Tensor, features: Tensor, rate: float) -> None:
        adapted = self.adapter.units(features.flatten(1, 2))
        batch = target.shape[1]
        if self.views == 2:
            losses, by_units = instance_contrast(adapted.units, index, self.settings.temperature)
            by_units.mul_(self.mu)
            if self.memory is not None and self.settings.memory_update == "drawn":
                self.memory.add(index, losses)
        else:
            by_units = torch.zeros_like(adapted.units)
        by_text = text_gradient(adapted.units[:, :batch], self.text, target, self.scale)
        by_units[:, :batch].add_(by_text)
        self.adapter.backward(adapted, by_units)
        self.optimizer.step(rate)

    def _order(self, epoch: int, scores: Tensor | None) -> Tensor:
        """Return which samples the epoch visits, (P, T) on the CPU."""
        settings = self.settings
        if scores is not None and settings.memory_sampling:
            found = [
                memory_order(
                    self.labels,
                    row,
                    self.classes,
                    settings.per_class,
                    generator(self.seed, "stage2", epoch),
                )
                for row in scores.cpu()
            ]
            return torch.stack(found)
        draws = generator(self.seed, "stage2", epoch)
        order = epoch_order(self.labels, self.classes, settings.sampler, draws, settings.per_class)
        return order.expand(len(self.points), -1)

    def _measure_all(self, epoch: int, asked: Tensor | None) -> None:
        """Measure every image's contrastive loss once, with the epoch's last weights."""
        assert self.memory is not None
        order = torch.randperm(len(self.labels), generator=generator(self.seed, "measure", epoch))
        draws = generator(self.seed, "measured views", epoch)
        rows = order.expand(len(self.points), -1)
        batches = self.source.epoch(rows, asked, 2, self.settings.batch_size, draws)
        for index, _, features in batches:
            units = self.adapter.units(features.flatten(1, 2)).units
            self.memory.add(index, instance_contrast(units, index, self.settings.temperature)[0])


@torch.no_grad()
def text_gradient(units: Tensor, text: Tensor, target: Tensor, scale: float) -> Tensor:
    """Return the gradient (P, B, D) of each model's mean cross-entropy over the prompts (eq. 6).

    Args:
        units: adapted features of unit length (P, B, D).
        text: the classes' texts (C, D).
        target: (P, B) int64.
    """
    shares = torch.softmax(units @ (scale * text).T, dim=-1)
    return (shares @ text).sub_(text[target]).mul_(scale / target.shape[1])


def memory_order(
    labels: Tensor, scores: Tensor, classes: int, per_class: int, draws: torch.Generator
) -> Tensor:
    """Return N positions: classes alike, and of a class its samples in proportion to their memory.

    Where a class's memory is all zero its samples are alike.

    Args:
        labels, scores: (N,) on the CPU.
    """
    weight = scores.double()
    sums = torch.zeros(classes, dtype=torch.float64).index_add_(0, labels, weight)
    weight = torch.where(sums[labels] > 0, weight, 1.0)
    total = len(labels)
    drawn = epoch_order(labels, classes, "balanced", draws, per_class)
    # Within each class: the place where its share of a uniform number falls in the running sum.
    by_class = torch.argsort(labels, stable=True)
    running = weight[by_class].cumsum(0)
    counts = torch.bincount(labels, minlength=classes)
    last = counts.cumsum(0) - 1
    ends = running[last.clamp_min(0)]
    starts = torch.cat([running.new_zeros(1), running])[counts.cumsum(0) - counts]
    wanted = labels[drawn]
    uniform = torch.rand(total, dtype=torch.float64, generator=draws)
    at = starts[wanted] + uniform * (ends - starts)[wanted]
    found = torch.searchsorted(running, at, right=True)
    found = found.minimum(last[wanted]).maximum((counts.cumsum(0) - counts)[wanted])
    return by_class[found]
