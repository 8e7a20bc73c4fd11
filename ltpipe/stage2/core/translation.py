"""M2m's translation in feature space: samples of rare classes made from those of frequent ones.

Kim et al., "M2m: Imbalanced Classification via Major-to-Minor Translation", CVPR 2020. The paper
changes images by gradients through a network; here the same steps change cached features, g is
the stage-one classifier, and the classifier being trained is f. Steps are measured by the mean
feature norm, and features of a ReLU network stay non-negative.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ltpipe.features.store import FeatureStore
from ltpipe.losses.softmax import CrossEntropyLoss
from ltpipe.stage2.core.base_classifier import backbone_head
from ltpipe.stage2.core.batches import Sampling
from ltpipe.stage2.core.fit import EpochBatches, Parameters, Recipe, fit, repeated
from ltpipe.stage2.core.heads import LinearModel, random_classifier
from ltpipe.stage2.core.logit_gradients import logit_gradient
from ltpipe.stage2.core.retraining import training_batches
from ltpipe.utils.seeding import generator


@dataclass(frozen=True)
class Translation:
    """How samples are translated.

    `beta` shapes the choice of what to start from, `penalty` weighs the logit of its class, `steps`
    of `step_size` times the mean feature norm are taken from a start disturbed by `noise` times a
    step, and a sample is kept that g is sure of by `confidence`.
    """

    beta: float = 0.999
    penalty: float = 0.5
    steps: int = 10
    step_size: float = 0.1
    noise: float = 0.5
    confidence: float = 0.9


def mean_norm(store: FeatureStore) -> float:
    """Return the mean length of a store's features."""
    return float(torch.linalg.vector_norm(torch.from_numpy(store.features), dim=1).mean())


def fit_translated(
    store: FeatureStore,
    translation: Translation,
    recipe: Recipe,
    sampling: Sampling,
    seed: int,
    device: torch.device,
    *,
    initial: str,
) -> Parameters:
    """Return weight and bias of the recipe's P points, fitted together: (P, ...).

    Raises:
        InputError: the store carries no stage-one classifier.
    """
    judge = start = backbone_head(store)
    if initial == "random":
        classes, dimension = judge["weight"].shape
        draws = generator(seed, "classifier")
        start = random_classifier(classes, dimension, draws, cosine=False)
    parameters = repeated(start, recipe.points, device)
    batches = TranslatedBatches(
        training_batches(store, sampling, recipe.batch_size, seed, device),
        parameters["weight"],
        judge,
        torch.tensor(store.class_counts),
        mean_norm(store),
        translation,
        seed,
        non_negative=bool((store.features >= 0).all()),
    )
    return fit(
        parameters,
        LinearModel(logit_gradient(CrossEntropyLoss(), device=device), ("weight", "bias")),
        batches,
        recipe,
        description=f"M2m, {recipe.points} models",
    )


class TranslatedBatches:
    """Batches in which some samples of rare classes are made from others of frequent ones.

    Args:
        batches: what is drawn, inputs (1, B, D).
        weight: f's weight (P, C, D), as it is being trained.
        judge: g's weight (C, D) and bias (C,).
        counts: (C,) training samples a class.
        norm: the mean feature norm, the unit of steps and noise.
        non_negative: whether features stay at or above zero.
    """

    def __init__(
        self,
        batches: EpochBatches,
        weight: Tensor,
        judge: Parameters,
        counts: Tensor,
        norm: float,
        translation: Translation,
        seed: int,
        *,
        non_negative: bool,
    ) -> None:
        self.batches = batches
        self.weight = weight
        self.points = len(weight)
        self.judge_weight = judge["weight"].to(weight.device).repeat(self.points, 1, 1)
        self.judge_bias = judge["bias"].to(weight.device).repeat(self.points, 1).unsqueeze(1)
        self.counts = counts.to(weight.device)
        self.norm = torch.tensor(norm, device=weight.device)
        self.translation = translation
        self.seed = seed
        self.non_negative = non_negative

    def __call__(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield inputs (P, B, D) and targets (P, B)."""
        stream = generator(self.seed, "m2m", epoch)
        for (inputs,), (target,) in self.batches(epoch):
            sources, accepted, noise = self._draw(inputs, target, stream)
            labels = target.repeat(self.points, 1)
            made = self._translate(
                inputs[sources].repeat(self.points, 1, 1), noise, labels, target[sources]
            )
            sure = self._confidence(made, labels) >= self.translation.confidence
            taken = (sure & accepted).unsqueeze(2)
            yield torch.where(taken, made, inputs.repeat(self.points, 1, 1)), labels

    def _draw(
        self, inputs: Tensor, target: Tensor, stream: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return what chance decides for each sample (B,).

        The place of the sample to start from, whether what is made of it is accepted, and the
        noise (B, D).
        """
        numbers = self.counts[target].double()
        # How much larger the class of each candidate (last axis) is than the sample's own.
        excess = (numbers.unsqueeze(0) - numbers.unsqueeze(1)).clamp_min(0)
        chances = 1 - self.translation.beta**excess
        uniform = torch.rand(3, len(target), generator=stream, dtype=torch.float64)
        noise = torch.randn(inputs.shape, generator=stream).to(inputs)
        of_source, of_making, of_accepting = uniform.to(target.device)
        total = chances.cumsum(1)
        threshold = (of_source * total[:, -1]).unsqueeze(1)
        sources = torch.searchsorted(total, threshold, right=True).squeeze(1)
        sources = sources.clamp_max(len(target) - 1)
        made = (of_making < 1 - numbers / self.counts.max()) & (total[:, -1] > 0)
        chance = chances.gather(1, sources.unsqueeze(1)).squeeze(1)
        return sources, made & (of_accepting < chance), noise

    def _translate(
        self, features: Tensor, noise: Tensor, labels: Tensor, source_labels: Tensor
    ) -> Tensor:
        """Walk from features (P, B, D) towards what g calls `labels` and f not the source class.

        Args:
            noise: (B, D).
            labels: (P, B).
            source_labels: (B,).
        """
        translation = self.translation
        step = translation.step_size * self.norm
        places = labels.unsqueeze(2)
        away = translation.penalty * self.weight[:, source_labels]
        features = features + translation.noise * step * _unit(noise)
        for _ in range(translation.steps):
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
