"""BalPoE on cached features: experts biased to different class priors, multiplied.

Sanchez Aimar et al., "Balanced Product of Calibrated Experts for Long-Tailed Recognition", CVPR
2023: the loss is the experts' mean of ``CE(z_k + tau_k log pi, y)``, the prediction the mean of
their raw logits, unbiased where the tau's mean is 1. Mixup (Beta(a, a), one share a batch)
calibrates them. Experts are cosine classifiers of scale 30 without bias. The paper's share all but
the last stages of a network; on cached features they are classifiers, and mixup mixes features.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator

from ltpipe.config.base import Float
from ltpipe.config.registry import method
from ltpipe.stage2.core.settings import Tuned

if TYPE_CHECKING:
    from torch import Tensor

    from ltpipe.artifacts.job import Job
    from ltpipe.features.store import FeatureStore
    from ltpipe.stage2.core.fit import Parameters
    from ltpipe.stage2.core.inference import Fitted, Samples


@method("balpoe", paper="Sanchez Aimar et al., CVPR 2023")
class BalPoE(Tuned):
    """Cosine experts, each trained for a prior of its own, multiplied.

    `experts` gives each expert's tau: 0 expects the training prior, 1 a uniform one, 2 an inverted
    one. `mixup` is the a of Beta(a, a), 0 for none.
    """

    kind: Literal["balpoe"]
    experts: list[Float] = Field(default=[0.0, 1.0, 2.0], min_length=1)
    scale: Float = Field(default=30.0, gt=0)
    mixup: Float = Field(default=0.4, ge=0)
    sampler: Literal["balanced", "shuffle", "effective", "sqrt"] = "shuffle"

    @field_validator("experts")
    @classmethod
    def _differ(cls, values: list[float]) -> list[float]:
        if len(set(values)) != len(values):
            raise ValueError("experts names a tau twice")
        return values


def run(job: Job) -> dict[str, Any]:
    """Fit the experts of all sweep points at once."""
    from ltpipe.stage2.core.choosing import run_chosen

    return run_chosen(job, BalPoE, partial(_fit, job), logits)


def logits(fitted: Fitted[BalPoE], samples: Samples) -> Tensor:
    """Return the experts' mean logits (N, C)."""
    from ltpipe.stage2.core.experts import mean_cosines

    return mean_cosines(fitted.weights, samples["features"].features, fitted.settings.scale)


class MixedExperts:
    """Cosine experts on mixtures of samples and of their labels.

    Args:
        adjustments: (K, C), added to the scaled logits of each expert in training.
        scale: by what cosines are multiplied.
        mixup: the a of Beta(a, a), from which each batch draws one share; 0 mixes nothing.
        seed: of the shares and of what is mixed with what.
    """

    def __init__(self, adjustments: Tensor, scale: float, mixup: float, seed: int) -> None:
        import numpy as np

        self.adjustments = adjustments
        self.scale = scale
        self.mixup = mixup
        self.stream = np.random.default_rng(seed)

    def gradients(self, parameters: Parameters, inputs: Tensor, target: Tensor) -> Parameters:
        import torch
        from torch.nn import functional as F

        from ltpipe.stage2.core.heads import CosineModel

        share, order = 1.0, torch.arange(inputs.shape[1], device=inputs.device)
        if self.mixup:
            share = float(self.stream.beta(self.mixup, self.mixup))
            order = torch.from_numpy(self.stream.permutation(inputs.shape[1])).to(inputs.device)
        mixed = torch.lerp(inputs[:, order], inputs, share)
        by_logits = partial(self._by_logits, other=target[:, order], share=share)
        return CosineModel(by_logits).gradients(parameters, F.normalize(mixed, dim=2), target)

    def _by_logits(self, logits: Tensor, target: Tensor, other: Tensor, share: float) -> Tensor:
        import torch

        z = (self.scale * logits).unflatten(2, (-1, len(self.adjustments))) + self.adjustments
        gradient = torch.softmax(z, dim=-1).flatten(2, 3)
        for labels, part in ((target, share), (other, 1 - share)):
            places = labels[:, :, None, None].expand(*logits.shape[:3], 1)
            gradient.scatter_add_(3, places, gradient.new_full((), -part).expand(places.shape))
        return gradient.mul_(self.scale / target.shape[1])


def _fit(job: Job, settings: BalPoE, train: FeatureStore) -> dict[str, Tensor]:
    import torch

    from ltpipe.losses.base import checked_counts
    from ltpipe.stage2.core.fit import fit
    from ltpipe.stage2.core.heads import random_directions
    from ltpipe.stage2.core.retraining import recipe_of, sampling_of, training_batches
    from ltpipe.utils.seeding import generator, stream_seed

    recipe, experts = recipe_of(settings), len(settings.experts)
    counts = checked_counts(train.class_counts)
    log_prior = (counts / counts.sum()).log().float()
    adjustments = torch.tensor(settings.experts)[:, None] * log_prior
    classes, dimension = len(counts), train.features.shape[1]
    starts = [
        random_directions(classes, dimension, generator(job.seed, "expert", expert))
        for expert in range(experts)
    ] * recipe.points
    fitted = fit(
        {"weight": torch.stack(starts).to(job.device)},
        MixedExperts(
            adjustments.to(job.device),
            settings.scale,
            settings.mixup,
            stream_seed(job.seed, "mixup"),
        ),
        training_batches(train, sampling_of(settings), recipe.batch_size, job.seed, job.device),
        recipe,
        description=f"{recipe.points} x {experts} experts",
    )
    return {"weight": fitted["weight"].unflatten(0, (-1, experts))}
