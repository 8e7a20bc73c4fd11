"""MiSLAS's second stage: label-aware smoothing on a scaled, slowly moving classifier.

Zhong et al., "Improving Calibration for Long-Tailed Recognition", CVPR 2021, section 3.3. Stage one
is trained with mixup. The paper also re-estimates BatchNorm's statistics, which needs the images
and is left out here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ltpipe.artifacts.job import Job
from ltpipe.config.methods import MiSLAS
from ltpipe.features.store import FeatureStore
from ltpipe.losses.smoothing import LabelAwareSmoothingLoss
from ltpipe.stage2.core.decoupled import finish, open_features
from ltpipe.stage2.core.fit import Parameters, fit
from ltpipe.stage2.core.heads import LinearModel
from ltpipe.stage2.core.logit_gradients import logit_gradient
from ltpipe.stage2.core.retraining import recipe_of, scores, training_batches
from ltpipe.stage2.simple.lws import scaled_classifiers


def run(job: Job) -> dict[str, Any]:
    """Fit the classifiers of all points at once and evaluate their last epoch."""
    features = open_features(job, MiSLAS)
    found = fit_smoothed([features.train], features.settings, [job.spec["seed"]], job.device)
    return finish(job, features, scores, found)


def fit_smoothed(
    stores: Sequence[FeatureStore], settings: MiSLAS, seeds: Sequence[int], device: torch.device
) -> Parameters:
    """Return weight, bias and scale of S seeds times P points, fitted together: (S * P, ...)."""
    points = len(settings.points())
    loss = LabelAwareSmoothingLoss(
        stores[0].class_counts, settings.head, settings.tail, settings.shape
    )
    slow = settings.classifier_factor
    return fit(
        scaled_classifiers(stores, points, device),
        LinearModel(logit_gradient(loss, device=device), ("weight", "bias", "scale")),
        training_batches(stores, settings, seeds, device),
        recipe_of(settings, len(seeds), device, weight=slow, bias=slow),
        description=f"MiSLAS, {len(seeds) * points} models",
    )
