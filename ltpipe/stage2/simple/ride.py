"""RIDE on cached features: several experts under one loss that keeps them apart.

Wang et al., "Long-tailed Recognition by Routing Diverse Distribution-Aware Experts", ICLR 2021,
eqs. 3 to 5, with the released code's class-wise temperatures. The paper's experts share a
network's first stages and have their last ones apart; on cached features they are classifiers, as
DLSA embeds them. Scores are those of the experts' mean logits; there is no routing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ltpipe.artifacts.job import Job
from ltpipe.config.methods import RIDE
from ltpipe.features.store import FeatureStore
from ltpipe.losses.base import Loss
from ltpipe.losses.building import build_loss
from ltpipe.losses.weights import effective_number_weights
from ltpipe.stage2.core.batches import Rows, UnitRows, unit_rows
from ltpipe.stage2.core.decoupled import finish, open_features
from ltpipe.stage2.core.fit import Parameters, fit
from ltpipe.stage2.core.heads import (
    CosineModel,
    LinearModel,
    cosine_scores,
    linear_scores,
    model_at,
    random_directions,
    random_linear,
)
from ltpipe.stage2.core.retraining import recipe_of, training_batches
from ltpipe.stage2.core.scoring import Fitted, Samples
from ltpipe.utils.seeding import generator


def run(job: Job) -> dict[str, Any]:
    """Fit the experts of all points at once and evaluate their last epoch."""
    features = open_features(job, RIDE)
    settings = features.settings
    found = fit_experts([features.train], settings, [job.spec["seed"]], job.device)
    experts = {name: value.unflatten(0, (-1, settings.experts)) for name, value in found.items()}
    return finish(job, features, scores, experts)


def scores(fitted: Fitted, samples: Samples) -> Tensor:
    """Return the experts' mean logits."""
    settings, inputs = fitted.settings, samples["features"].features
    if settings.head == "linear":
        return mean_scores(fitted.weights, inputs)
    rows = unit_rows(inputs)
    each = [settings.scale * cosine_scores(weight, rows) for weight in fitted.weights["weight"]]
    return torch.stack(each).mean(0)


def mean_scores(experts: Parameters, inputs: Tensor) -> Tensor:
    """Return the mean logits (N, C) of linear experts (E, ...) on inputs (N, D)."""
    number = len(experts["weight"])
    return torch.stack([linear_scores(model_at(experts, e), inputs) for e in range(number)]).mean(0)


def fit_experts(
    stores: Sequence[FeatureStore], settings: RIDE, seeds: Sequence[int], device: torch.device
) -> Parameters:
    """Return the experts of S seeds times P points, fitted together: (S * P * E, ...)."""
    points, experts = len(settings.points()), settings.experts
    starts = [
        _start(store, settings, seed, expert)
        for store, seed in zip(stores, seeds, strict=True)
        for _ in range(points)
        for expert in range(experts)
    ]
    parameters = {
        name: torch.stack([start[name] for start in starts]).to(device) for name in starts[0]
    }
    gradient = DiversityGradient(settings, stores[0].class_counts, device)
    model = (
        LinearModel(gradient, ("weight", "bias"))
        if settings.head == "linear"
        else CosineModel(gradient)
    )
    gradient.on_epoch(0)
    return fit(
        parameters,
        model,
        training_batches(stores, settings, seeds, device, _rows(settings)),
        recipe_of(settings, len(seeds), device, models=experts),
        on_epoch=lambda epoch, _: gradient.on_epoch(epoch + 1),
        description=f"RIDE, {len(seeds) * points} x {experts} experts",
    )


class DiversityGradient:
    """Each expert's own loss, and its divergence from the experts' mean, by the logits.

    ``sum_e [L(z_e) + diversity T^2 KL(softmax(mean z / T_c) || softmax(z_e / T_c))]``, the mean
    taken as given. Before `reweight_from` all temperatures are 1 and classes weigh the same.
    """

    def __init__(self, settings: RIDE, class_counts: Sequence[int], device: torch.device) -> None:
        self.experts = settings.experts
        self.diversity = settings.diversity
        self.scale = settings.scale if settings.head == "cosine" else 1.0
        self.takes_cosines = settings.loss.takes_cosines
        options = {"scale": settings.scale} if self.takes_cosines else {}
        self.loss: Loss = build_loss(settings.loss.model_copy(update=options), class_counts)
        self.loss.to(device)
        start = settings.reweight_from
        self.start = 4 * settings.epochs // 5 if start is None else start
        self.weights = effective_number_weights(class_counts).to(device)
        self.ones = torch.ones(len(class_counts), device=device)
        self.class_temperatures = temperatures(class_counts, settings.temperature_share).to(device)
        self.temperatures = self.ones

    def on_epoch(self, epoch: int) -> None:
        """Announce the 0-based epoch that comes next."""
        late = epoch >= self.start
        self.loss.reweight(self.weights if late else None)
        self.temperatures = self.class_temperatures if late else self.ones

    def __call__(self, logits: Tensor, target: Tensor) -> Tensor:
        leaf = logits.requires_grad_()
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(self._value(leaf, target), leaf)
        return gradient

    def _value(self, leaf: Tensor, target: Tensor) -> Tensor:
        """Return the sum over models of the batch mean of what each one minimises."""
        own = leaf if self.takes_cosines else self.scale * leaf
        targets = target.unsqueeze(2).expand(leaf.shape[:3])
        losses = self.loss.per_sample(own.flatten(0, 2), targets.flatten()).view(targets.shape)
        weights = self.loss.class_weights()
        chosen = torch.ones_like(losses) if weights is None else weights[targets]
        value = ((chosen * losses).sum(1) / chosen.sum(1)).sum()
        z = (self.scale * leaf).unflatten(2, (-1, self.experts))
        mean = torch.softmax(z.detach().mean(3, keepdim=True) / self.temperatures, dim=-1)
        each = torch.log_softmax(z / self.temperatures, dim=-1)
        divergence = F.kl_div(each, mean.expand_as(each), reduction="none").sum(-1)
        factor = self.diversity * self.temperatures.mean().square()
        return value + factor * divergence.mean(1).sum()


def temperatures(class_counts: Sequence[int], share: float) -> Tensor:
    """Return ``T_c = w_c / max w`` with ``w_c = C share n_c / N + 1 - share``, float32 (C,)."""
    counts = torch.tensor(class_counts, dtype=torch.float64)
    weights = len(counts) * share * counts / counts.sum() + 1 - share
    return (weights / weights.max()).float()


def _rows(settings: RIDE) -> type[Rows]:
    return Rows if settings.head == "linear" else UnitRows


def _start(store: FeatureStore, settings: RIDE, seed: int, expert: int) -> Parameters:
    classes, dimension = len(store.class_names), store.features.shape[1]
    draws = generator(seed, "expert", expert)
    if settings.head == "cosine":
        return {"weight": random_directions(classes, dimension, draws)}
    weight, bias = random_linear(classes, dimension, draws)
    return {"weight": weight, "bias": bias}
