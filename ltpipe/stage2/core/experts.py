"""Experts on the same features under one loss that keeps them apart, as in RIDE.

Wang et al., "Long-tailed Recognition by Routing Diverse Distribution-Aware Experts", ICLR 2021,
eqs. 3 to 5, with the released code's class-wise temperatures.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ltpipe.features.store import FeatureStore
from ltpipe.losses.base import Loss
from ltpipe.losses.weights import effective_number_weights
from ltpipe.stage2.core.batches import Rows, Sampling, UnitRows, unit_rows
from ltpipe.stage2.core.fit import Parameters, Recipe, fit
from ltpipe.stage2.core.heads import (
    classifier_model,
    cosines,
    linear_logits,
    model_at,
    random_classifier,
)
from ltpipe.stage2.core.retraining import training_batches
from ltpipe.utils.seeding import generator


class DiversityGradient:
    """Each expert's own loss, and its divergence from the experts' mean, by the logits.

    ``sum_e [L(z_e) + diversity T^2 KL(softmax(mean z / T_c) || softmax(z_e / T_c))]``, the mean
    taken as given. Before `reweight_from` all temperatures are 1 and classes weigh the same.

    Args:
        loss: L, of the outputs where it takes cosines, else of ``scale`` times them.
        experts: how many there are.
        reweight_from: the 0-based epoch from which class weights and temperatures act.
        temperature_share: how far temperatures follow class counts.
        scale: by what outputs are multiplied to logits.
    """

    def __init__(
        self,
        loss: Loss,
        class_counts: Sequence[int],
        device: torch.device,
        *,
        experts: int,
        reweight_from: int,
        diversity: float = -0.2,
        temperature_share: float = 0.05,
        scale: float = 1.0,
    ) -> None:
        self.loss = loss.to(device)
        self.experts = experts
        self.reweight_from = reweight_from
        self.diversity = diversity
        self.scale = scale
        self.weights = effective_number_weights(class_counts).to(device)
        self.ones = torch.ones(len(class_counts), device=device)
        self.class_temperatures = temperatures(class_counts, temperature_share).to(device)
        self.on_epoch(0)

    def on_epoch(self, epoch: int) -> None:
        """Announce the 0-based epoch that comes next."""
        late = epoch >= self.reweight_from
        self.loss.reweight(self.weights if late else None)
        self.temperatures = self.class_temperatures if late else self.ones

    def __call__(self, logits: Tensor, target: Tensor) -> Tensor:
        leaf = logits.requires_grad_()
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(self._value(leaf, target), leaf)
        return gradient

    def _value(self, leaf: Tensor, target: Tensor) -> Tensor:
        """Return the sum over models of the batch mean of what each one minimises."""
        own = leaf if self.loss.takes_cosines else self.scale * leaf
        targets = target.unsqueeze(2).expand(leaf.shape[:3])
        losses = self.loss.per_sample(own.flatten(0, 2), targets.flatten()).view(targets.shape)
        weights = self.loss.class_weights()
        of_targets = torch.ones_like(losses) if weights is None else weights[targets]
        value = ((of_targets * losses).sum(1) / of_targets.sum(1)).sum()
        z = (self.scale * leaf).unflatten(2, (-1, self.experts))
        mean = torch.softmax(z.detach().mean(3, keepdim=True) / self.temperatures, dim=-1)
        each = torch.log_softmax(z / self.temperatures, dim=-1)
        divergence = F.kl_div(each, mean.expand_as(each), reduction="none").sum(-1)
        factor = self.diversity * self.temperatures.mean().square()
        return value + factor * divergence.mean(1).sum()


def fit_experts(
    store: FeatureStore,
    gradient: DiversityGradient,
    recipe: Recipe,
    sampling: Sampling,
    seed: int,
    device: torch.device,
    *,
    cosine: bool,
) -> Parameters:
    """Return the experts of the recipe's P points: (P * E, ...).

    Cosine experts see features of unit length.
    """
    classes, dimension = len(store.class_names), store.features.shape[1]
    starts = [
        random_classifier(classes, dimension, generator(seed, "expert", expert), cosine=cosine)
        for expert in range(gradient.experts)
    ] * recipe.points
    batches = training_batches(
        store, sampling, recipe.batch_size, seed, device, UnitRows if cosine else Rows
    )
    return fit(
        {name: torch.stack([start[name] for start in starts]).to(device) for name in starts[0]},
        classifier_model(gradient, cosine=cosine),
        batches,
        recipe,
        on_epoch=lambda epoch, _: gradient.on_epoch(epoch + 1),
        description=f"{recipe.points} x {gradient.experts} experts",
    )


def mean_logits(experts: Parameters, inputs: Tensor) -> Tensor:
    """Return the mean logits (N, C) of linear experts (E, ...) for inputs (N, D)."""
    number = len(experts["weight"])
    return torch.stack([linear_logits(model_at(experts, e), inputs) for e in range(number)]).mean(0)


def mean_cosines(experts: Parameters, inputs: Tensor, scale: float) -> Tensor:
    """Return the mean scaled cosines (N, C) of cosine experts (E, ...) with inputs (N, D)."""
    rows = unit_rows(inputs)
    return torch.stack([scale * cosines(weight, rows) for weight in experts["weight"]]).mean(0)


def temperatures(class_counts: Sequence[int], share: float) -> Tensor:
    """Return ``T_c = w_c / max w`` with ``w_c = C share n_c / N + 1 - share``, float32 (C,)."""
    counts = torch.tensor(class_counts, dtype=torch.float64)
    weights = len(counts) * share * counts / counts.sum() + 1 - share
    return (weights / weights.max()).float()
