"""The classifiers that DLSA is embedded in, each trained on one group of samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ltpipe.features.store import FeatureStore
from ltpipe.losses.base import SoftmaxForm
from ltpipe.losses.softmax import CrossEntropyLoss
from ltpipe.stage2.core.base_classifier import backbone_head
from ltpipe.stage2.core.batches import Draws, FeatureBatches, Rows
from ltpipe.stage2.core.experts import DiversityGradient, mean_logits
from ltpipe.stage2.core.fit import EpochBatches, Model, Parameters, Recipe, fit
from ltpipe.stage2.core.heads import LinearModel, random_linear
from ltpipe.stage2.core.logit_gradients import LogitGradient, SoftmaxGradient
from ltpipe.stage2.core.settings import COSINE_SCALE
from ltpipe.stage2.core.translation import TranslatedBatches, Translation, mean_norm
from ltpipe.stage2.dlsa.cosine_parts import CosinePartsModel, cosine_part_logits
from ltpipe.utils.seeding import generator

Classify = Callable[[Tensor], Tensor]
# The class prior of classes that a group lacks, as in the released code.
_ABSENT = 1e-6
_EXPERTS = 2


@dataclass(frozen=True)
class GroupData:
    """A group's training features (n, D), labels (n,) on the CPU, and what is made of features.

    `lift` maps (m, D) to what the classifier sees, (m, E); `sizes` are the widths, E in all, of
    the parts that have layers of their own, the feature first; `prior_counts` (C,) are those that
    a balanced loss goes by.
    """

    name: str
    features: Tensor
    labels: Tensor
    lift: Callable[[Tensor], Tensor]
    sizes: list[int]
    prior_counts: Tensor

    @property
    def classes(self) -> int:
        """The number of classes."""
        return len(self.prior_counts)

    @property
    def counts(self) -> Tensor:
        """How many samples each class has in the group, (C,)."""
        return torch.bincount(self.labels, minlength=self.classes)


def fit_group(
    data: GroupData,
    store: FeatureStore,
    classifier: str,
    recipe: Recipe,
    seed: int,
    device: torch.device,
    *,
    initial: str = "random",
    watch: Callable[[int, Classify], None] | None = None,
) -> Parameters:
    """Train a classifier on a group and return its weights.

    Args:
        store: the training store, whose stage-one classifier may be needed.
        classifier, initial: as in DLSA's settings.
        watch: given the number of epochs done, and the function from lifted features (m, E) to
            logits (m, C) as it stands.

    Raises:
        InputError: `store` carries no stage-one classifier, and one is needed.
    """
    sampler = "balanced" if classifier in ("class-balanced-sampling", "m2m") else "shuffle"
    draws = Draws(data.labels, 1, seed, classes=data.classes, sampler=sampler)
    weights = _start(data, store, classifier, initial, seed, device)
    batches: EpochBatches
    if classifier == "m2m":
        plain = FeatureBatches(Rows(data.features), draws, recipe.batch_size, device)
        batches = _translated(plain, weights, data, store, seed)
    else:
        lifted = Rows(data.lift(data.features))
        batches = FeatureBatches(lifted, draws, recipe.batch_size, device)
    diverse = None
    model: Model
    if classifier == "cosine":
        gradient = SoftmaxGradient(SoftmaxForm(), scale=COSINE_SCALE, device=device)
        model = CosinePartsModel(gradient, data.sizes)
    elif classifier == "ride":
        # A class that the group lacks has no loss, so its weight does not matter.
        diverse = DiversityGradient(
            CrossEntropyLoss(),
            data.counts.clamp_min(1).tolist(),
            device,
            experts=_EXPERTS,
            reweight_from=4 * recipe.epochs // 5,
        )
        model = _Layers(diverse, len(data.sizes))
    else:
        prior = None
        if classifier == "balanced-softmax":
            prior = data.prior_counts.double().clamp_min(_ABSENT).log().float()
        gradient = SoftmaxGradient(SoftmaxForm(prior=prior), device=device)
        model = _Layers(gradient, len(data.sizes))

    def classify(inputs: Tensor) -> Tensor:
        return group_logits(classifier, weights, inputs, data.sizes)

    def on_epoch(epoch: int, _: Parameters) -> None:
        if diverse is not None:
            diverse.on_epoch(epoch + 1)
        if watch is not None:
            watch(epoch + 1, classify)

    description = f"{classifier}, {data.name}"
    return fit(weights, model, batches, recipe, on_epoch=on_epoch, description=description)


def group_logits(
    classifier: str, weights: Parameters, inputs: Tensor, sizes: Sequence[int]
) -> Tensor:
    """Return a group's logits (m, C) of lifted features (m, E).

    Args:
        weights: those of `fit_group`.
        sizes: the widths of the parts that have layers of their own.
    """
    if classifier == "cosine":
        return COSINE_SCALE * cosine_part_logits(weights["weight"][0], inputs, sizes)
    return mean_logits(weights, inputs)


class _Layers:
    """Linear layers on the parts of one vector, as one weight and the sum of their biases.

    Each bias has the gradient of the logits, so that their sum moves as fast as all together.
    """

    def __init__(self, gradient: LogitGradient, layers: int) -> None:
        self.joined = LinearModel(gradient, ("weight", "bias"))
        self.layers = layers

    def gradients(self, parameters: Parameters, inputs: Tensor, target: Tensor) -> Parameters:
        gradients = self.joined.gradients(parameters, inputs, target)
        gradients["bias"].mul_(self.layers)
        return gradients


def _start(
    data: GroupData,
    store: FeatureStore,
    classifier: str,
    initial: str,
    seed: int,
    device: torch.device,
) -> Parameters:
    """Return weights (E, C, sum of sizes), and biases (E, C) but of cosines, of E experts.

    Every part is a fresh layer. From the backbone's classifier experts start apart, too: it is
    their mean, and each is off by what fresh layers differ by. Equal experts would stay equal.
    """
    experts = _EXPERTS if classifier == "ride" else 1
    layers = []
    for part, width in enumerate(data.sizes):
        fresh = [
            random_linear(data.classes, width, generator(seed, "dlsa", data.name, expert, part))
            for expert in range(experts)
        ]
        layers.append([torch.stack(values) for values in zip(*fresh, strict=True)])
    if initial == "backbone":
        own = backbone_head(store)
        weight, bias = layers[0]
        of_features = weight[:, :, : data.features.shape[1]]
        of_features += own["weight"] - of_features.mean(0)
        bias += own["bias"] - bias.mean(0)
    weights = {"weight": torch.cat([weight for weight, _ in layers], 2)}
    if classifier != "cosine":
        weights["bias"] = torch.stack([bias for _, bias in layers]).sum(0)
    return {name: value.to(device) for name, value in weights.items()}


def _translated(
    plain: FeatureBatches, weights: Parameters, data: GroupData, store: FeatureStore, seed: int
) -> EpochBatches:
    """Return batches in which features are translated first and lifted then."""
    translated = TranslatedBatches(
        plain,
        # A view: it changes as the classifier is trained.
        weights["weight"][:, :, : data.features.shape[1]],
        backbone_head(store),
        data.counts,
        mean_norm(store),
        Translation(),
        seed,
        non_negative=bool((data.features >= 0).all()),
    )

    def batches(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        for inputs, target in translated(epoch):
            yield data.lift(inputs[0])[None], target

    return batches
