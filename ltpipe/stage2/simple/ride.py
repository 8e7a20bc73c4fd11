"""RIDE on cached features: several experts under one loss that keeps them apart.

Wang et al., "Long-tailed Recognition by Routing Diverse Distribution-Aware Experts", ICLR 2021. The
paper's experts share a network's first stages and have their last ones apart; on cached features
they are classifiers, as DLSA embeds them. Logits are the experts' mean; there is no routing.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ltpipe.artifacts.job import Job
from ltpipe.config.methods import RIDE
from ltpipe.losses.building import build_loss
from ltpipe.stage2.core.batches import unit_rows
from ltpipe.stage2.core.experts import DiversityGradient, fit_experts, mean_logits
from ltpipe.stage2.core.heads import cosines
from ltpipe.stage2.core.inference import Fitted, Samples
from ltpipe.stage2.core.one_backbone import finish, open_features
from ltpipe.stage2.core.retraining import recipe_of, sampling_of


def run(job: Job) -> dict[str, Any]:
    """Fit the experts of all sweep points at once and evaluate their last epoch."""
    features = open_features(job, RIDE)
    settings, train = features.settings, features.train
    weights = fit_experts(
        train,
        diversity_gradient(settings, train.class_counts, job.device),
        recipe_of(settings),
        sampling_of(settings),
        job.spec["seed"],
        job.device,
        cosine=settings.head == "cosine",
    )
    experts = {name: value.unflatten(0, (-1, settings.experts)) for name, value in weights.items()}
    return finish(job, features, logits, experts)


def logits(fitted: Fitted[RIDE], samples: Samples) -> Tensor:
    """Return the experts' mean logits (N, C)."""
    settings, inputs = fitted.settings, samples["features"].features
    if settings.head == "linear":
        return mean_logits(fitted.weights, inputs)
    rows = unit_rows(inputs)
    each = [settings.scale * cosines(weight, rows) for weight in fitted.weights["weight"]]
    return torch.stack(each).mean(0)


def diversity_gradient(
    settings: RIDE, class_counts: list[int], device: torch.device
) -> DiversityGradient:
    """Return what the experts are trained by."""
    loss, start = settings.loss, settings.reweight_from
    if loss.takes_cosines:
        loss = loss.model_copy(update={"scale": settings.scale})
    return DiversityGradient(
        build_loss(loss, class_counts),
        class_counts,
        device,
        experts=settings.experts,
        reweight_from=4 * settings.epochs // 5 if start is None else start,
        diversity=settings.diversity,
        temperature_share=settings.temperature_share,
        scale=settings.scale if settings.head == "cosine" else 1.0,
    )
