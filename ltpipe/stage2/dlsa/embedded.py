"""The classifiers that DLSA is embedded in, each trained on one group of samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ltpipe.artifacts.job import Job
from ltpipe.config.methods import DLSA, M2M, RIDE
from ltpipe.features.store import FeatureStore
from ltpipe.losses.base import SoftmaxForm
from ltpipe.stage2.core.batches import Draws, FeatureBatches, Rows
from ltpipe.stage2.core.fit import EpochBatches, Model, Parameters, fit
from ltpipe.stage2.core.heads import (
    COSINE_SCALE,
    LinearModel,
    random_directions,
    random_linear,
)
from ltpipe.stage2.core.logit_gradients import SoftmaxGradient
from ltpipe.stage2.core.results import linear_classifier_of
from ltpipe.stage2.core.retraining import recipe_of
from ltpipe.stage2.dlsa.cosine_parts import CosinePartsModel, cosine_part_scores
from ltpipe.stage2.simple.m2m import TranslatedBatches, mean_norm
from ltpipe.stage2.simple.ride import DiversityGradient, mean_scores
from ltpipe.utils.seeding import generator

Classify = Callable[[Tensor], Tensor]
# The class prior of classes that a group lacks, as in the released code.
_ABSENT = 1e-6
_EXPERTS = 2


@dataclass(frozen=True)
class GroupData:
    """A group's training features (n, D), labels (n,) on the CPU, and what is made of features.

    `lift` maps (m, D) to what the classifier sees, (m, E); `sizes` are the widths, E in all, of
    the parts that a cosine classifier takes apart; `prior_counts` (C,) are those that a balanced
    loss goes by.
    """

    features: Tensor
    labels: Tensor
    lift: Callable[[Tensor], Tensor]
    sizes: list[int]
    prior_counts: Tensor


def fit_group(
    data: GroupData,
    store: FeatureStore,
    settings: DLSA,
    job: Job,
    name: str,
    watch: Callable[[int, Classify], None] | None = None,
) -> tuple[Classify, Parameters]:
    """Train the settings' classifier on a group.

    Returns a function from lifted features (m, E) to logits (m, C), and the weights. `watch` is
    given the number of epochs done and that function as it stands.

    Raises:
        InputError: `store` carries no stage-one classifier, and one is needed.
    """
    classes = len(store.class_names)
    seed, device = job.spec["seed"], job.device
    sampler = "balanced" if settings.classifier in ("class-balanced-sampling", "m2m") else "shuffle"
    draws = Draws(data.labels, 1, [seed], classes=classes, sampler=sampler)
    experts = _EXPERTS if settings.classifier == "ride" else 1
    found = _start(data, store, settings, seed, name, experts, device)
    batches: EpochBatches
    if settings.classifier == "m2m":
        plain = FeatureBatches(Rows(data.features), draws, settings.batch_size, device)
        batches = _translated(plain, found, data, store, seed, device)
    else:
        lifted = Rows(data.lift(data.features))
        batches = FeatureBatches(lifted, draws, settings.batch_size, device)
    diverse = None
    model: Model
    if settings.classifier == "cosine":
        gradient = SoftmaxGradient(SoftmaxForm(), scale=COSINE_SCALE, device=device)
        model = CosinePartsModel(gradient, data.sizes)
    elif settings.classifier == "ride":
        diverse = _diversity(settings, _counts(data, classes), device)
        model = LinearModel(diverse, ("weight", "bias"))
    else:
        prior = None
        if settings.classifier == "balanced-softmax":
            prior = data.prior_counts.double().clamp_min(_ABSENT).log().float()
        gradient = SoftmaxGradient(SoftmaxForm(prior=prior), device=device)
        model = LinearModel(gradient, ("weight", "bias"))

    def classify(inputs: Tensor) -> Tensor:
        return group_scores(settings.classifier, found, inputs, data.sizes)

    def on_epoch(epoch: int, _: Parameters) -> None:
        if diverse is not None:
            diverse.on_epoch(epoch + 1)
        if watch is not None:
            watch(epoch + 1, classify)

    recipe = recipe_of(settings, 1, device)
    description = f"{settings.classifier}, {name}"
    fit(found, model, batches, recipe, on_epoch=on_epoch, description=description)
    return classify, found


def group_scores(
    classifier: str, found: Parameters, inputs: Tensor, sizes: Sequence[int]
) -> Tensor:
    """Return a group's logits (m, C) of lifted features (m, E).

    Args:
        found: the weights of `fit_group`.
        sizes: the widths of the parts that a cosine classifier takes apart.
    """
    if classifier == "cosine":
        return COSINE_SCALE * cosine_part_scores(found["weight"][0], inputs, sizes)
    return mean_scores(found, inputs)


def _counts(data: GroupData, classes: int) -> Tensor:
    return torch.bincount(data.labels, minlength=classes)


def _start(
    data: GroupData,
    store: FeatureStore,
    settings: DLSA,
    seed: int,
    name: str,
    models: int,
    device: torch.device,
) -> Parameters:
    classes, width = len(store.class_names), sum(data.sizes)
    if settings.classifier == "cosine":
        draws = generator(seed, "dlsa", name)
        return {"weight": random_directions(classes, width, draws)[None].to(device)}
    starts = [
        random_linear(classes, width, generator(seed, "dlsa", name, model))
        for model in range(models)
    ]
    weight = torch.stack([start[0] for start in starts])
    bias = torch.stack([start[1] for start in starts])
    if settings.initial == "backbone":
        own_weight, own_bias = linear_classifier_of(store)
        weight[:, :, : own_weight.shape[1]] = own_weight
        bias[:] = own_bias
    return {"weight": weight.to(device), "bias": bias.to(device)}


def _diversity(settings: DLSA, counts: Tensor, device: torch.device) -> DiversityGradient:
    ride = RIDE.model_validate(
        {
            "kind": "ride",
            "backbones": {"features": "features"},
            "experts": _EXPERTS,
            "head": "linear",
            "loss": {"name": "ce"},
            "epochs": settings.epochs,
        }
    )
    # A class that the group lacks has no loss, so its weight does not matter.
    gradient = DiversityGradient(ride, counts.clamp_min(1).tolist(), device)
    gradient.on_epoch(0)
    return gradient


def _translated(
    plain: FeatureBatches,
    found: Parameters,
    data: GroupData,
    store: FeatureStore,
    seed: int,
    device: torch.device,
) -> EpochBatches:
    """Return batches in which features are translated first and lifted then."""
    weight, bias = linear_classifier_of(store)
    dimension = data.features.shape[1]
    translated = TranslatedBatches(
        plain,
        # A view: it changes as the classifier is trained.
        found["weight"][:, :, :dimension],
        (weight[None].to(device), bias[None].to(device)),
        _counts(data, len(store.class_names)).to(device),
        torch.tensor([mean_norm(store)], device=device),
        bool((data.features >= 0).all()),
        M2M.model_validate({"kind": "m2m", "backbones": {"features": "features"}}),
        [seed],
    )

    def batches(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        for inputs, target in translated(epoch):
            yield data.lift(inputs[0])[None], target

    return batches
