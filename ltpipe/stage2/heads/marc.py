"""MARC: a learned margin for each class on a frozen classifier.

Wang et al., "Margin Calibration for Long-Tailed Visual Recognition", ACML 2022, eq. 6, and the
released code: ``z'_c = a_c z_c + b_c |w_c|``, z with its bias, a = 1 and b = 0 at the start,
trained by cross-entropy with class weights ``(1 / pi_c) ** 1.2``. Released for CIFAR-LT: SGD from
0.05, momentum 0.9, weight decay 5e-4, batches of 512, shuffled samples; decay pulls a to 0.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from ltpipe.config.base import Float
from ltpipe.config.registry import method
from ltpipe.stage2.core.settings import OnClassifier, Tuned

if TYPE_CHECKING:
    from torch import Tensor

    from ltpipe.artifacts.job import Job
    from ltpipe.features.store import FeatureStore
    from ltpipe.stage2.core.fit import Parameters
    from ltpipe.stage2.core.inference import Fitted, Samples


@method("marc", paper="Wang et al., ACML 2022")
class MARC(OnClassifier, Tuned):
    """A learned factor and margin for each class of a trained classifier that stays as it is.

    `exponent` is that of the class weights in the loss, n ** -exponent.
    """

    kind: Literal["marc"]
    exponent: Float = Field(default=1.2, ge=0)
    sampler: Literal["balanced", "shuffle", "effective", "sqrt"] = "shuffle"
    batch_size: int = Field(default=512, ge=1)
    epochs: int = Field(default=10, ge=1)
    learning_rate: Float | list[Float] = 0.05


def run(job: Job) -> dict[str, Any]:
    """Fit the factors and margins."""
    from ltpipe.stage2.core.choosing import run_chosen

    return run_chosen(job, MARC, partial(_fit, job), logits)


def logits(fitted: Fitted[MARC], samples: Samples) -> Tensor:
    """Return the calibrated logits (N, C)."""
    from ltpipe.stage2.core.heads import linear_logits

    weights = fitted.weights
    frozen = linear_logits(
        {"weight": weights["weight"], "bias": weights["bias"]}, samples["features"].features
    )
    return calibrated(frozen, weights["factor"], weights["margin"], weights["weight"])


def calibrated(frozen: Tensor, factor: Tensor, margin: Tensor, weight: Tensor) -> Tensor:
    """Return ``a z + b |w|`` of logits (..., C); factor and margin broadcast with them.

    Args:
        weight: (C, D), whose rows' lengths multiply the margins.
    """
    return factor * frozen + margin * weight.norm(dim=1)


def _fit(job: Job, settings: MARC, train: FeatureStore) -> dict[str, Tensor]:
    import torch

    from ltpipe.losses.softmax import CrossEntropyLoss
    from ltpipe.losses.weights import powered_frequency_weights
    from ltpipe.stage2.core.base_classifier import base_classifier
    from ltpipe.stage2.core.fit import fit, repeated
    from ltpipe.stage2.core.heads import AutogradModel, linear_logits
    from ltpipe.stage2.core.logit_gradients import logit_gradient
    from ltpipe.stage2.core.retraining import recipe_of, sampling_of, training_batches

    recipe = recipe_of(settings)
    start = base_classifier(train, settings.initial, job.seed, job.device)
    start = {name: value.to(job.device) for name, value in start.items()}
    ones = torch.ones_like(start["bias"])
    loss = CrossEntropyLoss()
    loss.reweight(powered_frequency_weights(train.class_counts, settings.exponent))

    def forward(parameters: Parameters, inputs: Tensor) -> Tensor:
        frozen = linear_logits(start, inputs).unsqueeze(2)
        return calibrated(frozen, parameters["factor"], parameters["margin"], start["weight"])

    fitted = fit(
        repeated({"factor": ones, "margin": torch.zeros_like(ones)}, recipe.points, job.device),
        AutogradModel(forward, logit_gradient(loss, device=job.device), ("factor", "margin")),
        training_batches(train, sampling_of(settings), recipe.batch_size, job.seed, job.device),
        recipe,
        description=f"margins, {recipe.points} models",
    )
    return {**fitted, **repeated(start, recipe.points, job.device)}
