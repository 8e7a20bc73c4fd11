"""Learnable weight scaling: ``scale_c (w_c . x + b_c)`` with only the scales learned.

Kang et al., ICLR 2020, section 4.2; the scale multiplies the whole logit, as in the released code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ltpipe.artifacts.job import Job
from ltpipe.config.methods import LWS
from ltpipe.features.store import FeatureStore
from ltpipe.losses.building import build_loss
from ltpipe.stage2.core.decoupled import finish, open_features
from ltpipe.stage2.core.fit import Parameters, fit, stacked
from ltpipe.stage2.core.heads import LinearModel
from ltpipe.stage2.core.logit_gradients import logit_gradient
from ltpipe.stage2.core.results import linear_classifier_of
from ltpipe.stage2.core.retraining import recipe_of, scores, training_batches


def run(job: Job) -> dict[str, Any]:
    """Fit the scales of all points at once and evaluate their last epoch."""
    features = open_features(job, LWS)
    found = fit_scales([features.train], features.settings, [job.spec["seed"]], job.device)
    return finish(job, features, scores, found)


def fit_scales(
    stores: Sequence[FeatureStore], settings: LWS, seeds: Sequence[int], device: torch.device
) -> Parameters:
    """Return weight, bias and scale of S seeds times P points, fitted together: (S * P, ...)."""
    points = len(settings.points())
    loss = build_loss(settings.loss, stores[0].class_counts)
    return fit(
        scaled_classifiers(stores, points, device),
        LinearModel(logit_gradient(loss, device=device), ("scale",)),
        training_batches(stores, settings, seeds, device),
        recipe_of(settings, len(seeds), device),
        description=f"weight scaling, {len(seeds) * points} models",
    )


def scaled_classifiers(
    stores: Sequence[FeatureStore], points: int, device: torch.device
) -> Parameters:
    """Return the stage-one classifiers of S stores, each repeated for P points, scales 1.

    Raises:
        InputError: a store carries no classifier.
    """
    found = [linear_classifier_of(store) for store in stores]
    weight = stacked([weight for weight, _ in found], points).to(device)
    bias = stacked([bias for _, bias in found], points).to(device)
    return {"weight": weight, "bias": bias, "scale": torch.ones_like(bias)}
