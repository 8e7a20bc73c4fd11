"""A classifier retrained on frozen features, with any head, loss and sampler.

Its defaults are cRT: a fresh linear classifier under class-balanced sampling and cross-entropy.

Kang et al., "Decoupling Representation and Classifier for Long-Tailed Recognition", ICLR 2020,
section 4.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ltpipe.artifacts.job import Job
from ltpipe.config.methods import Classifier
from ltpipe.features.store import FeatureStore
from ltpipe.losses.base import Loss
from ltpipe.losses.building import build_loss
from ltpipe.losses.weights import effective_number_weights, inverse_frequency_weights
from ltpipe.stage2.core.batches import Rows, SquashedRows, UnitRows, squashed_rows, unit_rows
from ltpipe.stage2.core.decoupled import finish, open_features
from ltpipe.stage2.core.fit import Parameters, fit, stacked
from ltpipe.stage2.core.heads import (
    COSINE_SCALE,
    CosineModel,
    LinearModel,
    cosine_scores,
    linear_scores,
    random_directions,
    random_linear,
)
from ltpipe.stage2.core.logit_gradients import logit_gradient
from ltpipe.stage2.core.results import linear_classifier_of
from ltpipe.stage2.core.retraining import recipe_of, training_batches
from ltpipe.stage2.core.scoring import Fitted, Samples
from ltpipe.utils.seeding import generator


def run(job: Job) -> dict[str, Any]:
    """Fit the classifiers of all points at once and evaluate their last epoch."""
    features = open_features(job, Classifier)
    found = fit_classifiers([features.train], features.settings, [job.spec["seed"]], job.device)
    return finish(job, features, scores, found)


def scores(fitted: Fitted, samples: Samples) -> Tensor:
    """Return the logits at test time, as the loss has them."""
    settings, inputs = fitted.settings, samples["features"].features
    loss = _loss(settings, fitted.class_counts)
    if settings.head == "linear":
        return loss.logits(linear_scores(fitted.weights, inputs))
    rows = squashed_rows(inputs) if settings.rows == "squashed" else unit_rows(inputs)
    return loss.logits(_scale(settings) * cosine_scores(fitted.weights["weight"], rows))


def fit_classifiers(
    stores: Sequence[FeatureStore], settings: Classifier, seeds: Sequence[int], device: torch.device
) -> Parameters:
    """Return the parameters of S seeds times P points, fitted together: (S * P, ...).

    Each seed has a store of the same samples; model s * P + p is what seed s and point p give
    alone.
    """
    points = len(settings.points())
    loss = _loss(settings, stores[0].class_counts)
    gradient = logit_gradient(loss, _scale(settings), device)
    starts = [_start(store, settings, seed) for store, seed in zip(stores, seeds, strict=True)]
    parameters = {
        name: stacked([start[name] for start in starts], points).to(device) for name in starts[0]
    }
    model = (
        LinearModel(gradient, ("weight", "bias"))
        if settings.head == "linear"
        else CosineModel(gradient)
    )
    return fit(
        parameters,
        model,
        training_batches(stores, settings, seeds, device, _rows(settings)),
        recipe_of(settings, len(seeds), device),
        description=f"{settings.head} classifier, {len(seeds) * points} models",
    )


def _loss(settings: Classifier, class_counts: Sequence[int]) -> Loss:
    loss = build_loss(settings.loss, class_counts)
    if settings.weights == "inverse":
        loss.reweight(inverse_frequency_weights(class_counts))
    elif settings.weights == "effective":
        loss.reweight(effective_number_weights(class_counts))
    return loss


def _scale(settings: Classifier) -> float:
    if settings.head == "linear" or settings.loss.takes_cosines:
        return 1.0
    return settings.scale or COSINE_SCALE


def _rows(settings: Classifier) -> type[Rows]:
    if settings.head == "linear":
        return Rows
    return SquashedRows if settings.rows == "squashed" else UnitRows


def _start(store: FeatureStore, settings: Classifier, seed: int) -> Parameters:
    classes, dimension = len(store.class_names), store.features.shape[1]
    if settings.initial == "backbone":
        weight, bias = linear_classifier_of(store)
        return {"weight": weight} if settings.head == "cosine" else {"weight": weight, "bias": bias}
    draws = generator(seed, "classifier")
    if settings.head == "cosine":
        return {"weight": random_directions(classes, dimension, draws)}
    weight, bias = random_linear(classes, dimension, draws)
    return {"weight": weight, "bias": bias}
