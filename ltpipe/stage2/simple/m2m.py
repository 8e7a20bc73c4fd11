"""M2m in feature space: samples of rare classes translated from those of frequent ones.

Kim et al., "M2m: Imbalanced Classification via Major-to-Minor Translation", CVPR 2020. The paper
changes images by gradients through a network; here the same steps change cached features, g is
the stage-one classifier, and the classifier being trained is f. Steps are measured by the mean
feature norm, and features of a ReLU network stay non-negative.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ltpipe.artifacts.job import Job
from ltpipe.config.methods import M2M
from ltpipe.features.store import FeatureStore
from ltpipe.losses.softmax import CrossEntropyLoss
from ltpipe.stage2.core.batches import FeatureBatches
from ltpipe.stage2.core.decoupled import finish, open_features
from ltpipe.stage2.core.fit import Parameters, fit, stacked
from ltpipe.stage2.core.heads import LinearModel, random_linear
from ltpipe.stage2.core.logit_gradients import logit_gradient
from ltpipe.stage2.core.results import linear_classifier_of
from ltpipe.stage2.core.retraining import recipe_of, scores, training_batches
from ltpipe.utils.seeding import generator


def run(job: Job) -> dict[str, Any]:
    """Fit the classifiers of all points at once and evaluate their last epoch."""
    features = open_features(job, M2M)
    found = fit_translated([features.train], features.settings, [job.spec["seed"]], job.device)
    return finish(job, features, scores, found)


def fit_translated(
    stores: Sequence[FeatureStore], settings: M2M, seeds: Sequence[int], device: torch.device
) -> Parameters:
    """Return weight and bias of S seeds times P points, fitted together: (S * P, ...).

    Raises:
        InputError: a store carries no stage-one classifier.
    """
    points = len(settings.points())
    judges = [linear_classifier_of(store) for store in stores]
    judge_weight = torch.stack([weight for weight, _ in judges]).to(device)
    judge_bias = torch.stack([bias for _, bias in judges]).to(device)
    if settings.initial == "backbone":
        starts = list(zip(judge_weight, judge_bias, strict=True))
    else:
        classes, dimension = judge_weight.shape[1:]
        starts = [random_linear(classes, dimension, generator(s, "classifier")) for s in seeds]
    parameters = {
        "weight": stacked([weight for weight, _ in starts], points).to(device),
        "bias": stacked([bias for _, bias in starts], points).to(device),
    }
    batches = TranslatedBatches(
        training_batches(stores, settings, seeds, device),
        parameters["weight"],
        (judge_weight, judge_bias),
        torch.tensor(stores[0].class_counts, device=device),
        torch.tensor([mean_norm(store) for store in stores], device=device),
        all(bool((store.features >= 0).all()) for store in stores),
        settings,
        seeds,
    )
    return fit(
        parameters,
        LinearModel(logit_gradient(CrossEntropyLoss(), device=device), ("weight", "bias")),
        batches,
        recipe_of(settings, len(seeds), device),
        description=f"M2m, {len(seeds) * points} models",
    )


def mean_norm(store: FeatureStore) -> float:
    """Return the mean length of a store's features."""
    return float(torch.linalg.vector_norm(torch.from_numpy(store.features), dim=1).mean())


class TranslatedBatches:
    """Batches in which some samples of rare classes are made from others of frequent ones.

    Args:
        batches: what S seeds draw.
        weight: f's weight (S * P, C, D), as it is being trained.
        judge: g's weight (S, C, D) and bias (S, C).
        counts: (C,) training samples a class.
        norms: (S,) mean feature norms, the unit of steps and noise.
        non_negative: whether features stay at or above zero.
    """

    def __init__(
        self,
        batches: FeatureBatches,
        weight: Tensor,
        judge: tuple[Tensor, Tensor],
        counts: Tensor,
        norms: Tensor,
        non_negative: bool,
        settings: M2M,
        seeds: Sequence[int],
    ) -> None:
        self.batches = batches
        self.weight = weight
        self.points = len(weight) // len(seeds)
        self.judge_weight = judge[0].repeat_interleave(self.points, 0)
        self.judge_bias = judge[1].repeat_interleave(self.points, 0).unsqueeze(1)
        self.counts = counts
        self.norms = norms.repeat_interleave(self.points).view(-1, 1, 1)
        self.non_negative = non_negative
        self.settings = settings
        self.seeds = seeds

    def __call__(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield inputs (S * P, B, D) and targets (S * P, B)."""
        streams = [generator(seed, "m2m", epoch) for seed in self.seeds]
        for inputs, target in self.batches(epoch):
            sources, wanted, chance, uniform, noise = self._draw(inputs, target, streams)
            points = self.points
            rows = torch.arange(len(inputs), device=inputs.device).unsqueeze(1)
            start = inputs[rows, sources].repeat_interleave(points, 0)
            labels = target.repeat_interleave(points, 0)
            source_labels = target[rows, sources].repeat_interleave(points, 0)
            made = self._translate(start, noise.repeat_interleave(points, 0), labels, source_labels)
            sure = self._confidence(made, labels) >= self.settings.confidence
            accepted = wanted & (uniform < chance)
            taken = sure & accepted.repeat_interleave(points, 0)
            plain = inputs.repeat_interleave(points, 0)
            yield torch.where(taken.unsqueeze(2), made, plain), labels

    def _draw(
        self, inputs: Tensor, target: Tensor, streams: list[torch.Generator]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Return what chance decides for each sample (S, B).

        The place of the sample to start from, whether it is to be made at all, the chance that
        what is made is accepted with the number to hold against it, and the noise (S, B, D).
        """
        size = target.shape[1]
        beta = self.settings.beta
        numbers = self.counts[target].double()
        # How much larger the class of each candidate (last axis) is than the sample's own.
        excess = (numbers.unsqueeze(1) - numbers.unsqueeze(2)).clamp_min(0)
        chances = 1 - beta**excess
        uniform = [torch.rand(3, size, generator=stream, dtype=torch.float64) for stream in streams]
        noise = [torch.randn(inputs.shape[1:], generator=stream) for stream in streams]
        draws = torch.stack(uniform).to(target.device)
        total = chances.cumsum(2)
        possible = total[:, :, -1] > 0
        threshold = draws[:, 0] * total[:, :, -1]
        sources = torch.searchsorted(total, threshold.unsqueeze(2), right=True).squeeze(2)
        sources = sources.clamp_max(size - 1)
        wanted = (draws[:, 1] < 1 - numbers / self.counts.max()) & possible
        chance = chances.gather(2, sources.unsqueeze(2)).squeeze(2)
        return sources, wanted, chance, draws[:, 2], torch.stack(noise).to(inputs)

    def _translate(
        self, features: Tensor, noise: Tensor, labels: Tensor, source_labels: Tensor
    ) -> Tensor:
        """Walk from features (M, B, D) towards what g calls `labels` and f not the source class."""
        settings = self.settings
        step = settings.step_size * self.norms
        places = labels.unsqueeze(2)
        models = torch.arange(len(labels), device=labels.device).unsqueeze(1)
        away = settings.penalty * self.weight[models, source_labels]
        features = features + settings.noise * step * _unit(noise)
        for _ in range(settings.steps):
            errors = self._judge(features).softmax(2)
            errors.scatter_add_(2, places, errors.new_full((), -1.0).expand(places.shape))
            features = features - step * _unit(torch.bmm(errors, self.judge_weight) + away)
            if self.non_negative:
                features = features.clamp_min(0)
        return features

    def _judge(self, features: Tensor) -> Tensor:
        return torch.baddbmm(self.judge_bias, features, self.judge_weight.transpose(1, 2))

    def _confidence(self, features: Tensor, labels: Tensor) -> Tensor:
        return self._judge(features).softmax(2).gather(2, labels.unsqueeze(2)).squeeze(2)


def _unit(vectors: Tensor) -> Tensor:
    return torch.nn.functional.normalize(vectors, dim=-1)
