"""A classifier retrained on frozen features, with any head, loss and sampler.

Its defaults are cRT: a fresh linear classifier under class-balanced sampling and cross-entropy.

Kang et al., "Decoupling Representation and Classifier for Long-Tailed Recognition", ICLR 2020,
section 4.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ltpipe.artifacts.job import Job
from ltpipe.config.methods import Classifier
from ltpipe.losses.base import Loss
from ltpipe.losses.building import build_loss
from ltpipe.losses.weights import effective_number_weights, inverse_frequency_weights
from ltpipe.stage2.core.batches import Rows, SquashedRows, UnitRows, squashed_rows, unit_rows
from ltpipe.stage2.core.classifiers import fit_classifiers
from ltpipe.stage2.core.heads import COSINE_SCALE, cosines, linear_logits
from ltpipe.stage2.core.inference import Fitted, Samples
from ltpipe.stage2.core.one_backbone import finish, open_features
from ltpipe.stage2.core.retraining import recipe_of, sampling_of


def run(job: Job) -> dict[str, Any]:
    """Fit the classifiers of all sweep points at once and evaluate their last epoch."""
    features = open_features(job, Classifier)
    settings, train = features.settings, features.train
    weights = fit_classifiers(
        train,
        _loss(settings, train.class_counts),
        recipe_of(settings),
        sampling_of(settings),
        job.spec["seed"],
        job.device,
        cosine=settings.head == "cosine",
        rows=_rows(settings),
        scale=_scale(settings),
        initial=settings.initial,
    )
    return finish(job, features, logits, weights)


def logits(fitted: Fitted[Classifier], samples: Samples) -> Tensor:
    """Return the logits (N, C) at test time, as the loss has them."""
    settings, inputs = fitted.settings, samples["features"].features
    loss = _loss(settings, fitted.class_counts)
    if settings.head == "linear":
        return loss.logits(linear_logits(fitted.weights, inputs))
    rows = squashed_rows(inputs) if settings.rows == "squashed" else unit_rows(inputs)
    return loss.logits(_scale(settings) * cosines(fitted.weights["weight"], rows))


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
