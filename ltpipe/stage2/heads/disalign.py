"""DisAlign: a frozen classifier's logits, scaled and shifted by as much as a sample needs it.

Zhang et al., "Distribution Alignment: A Unified Framework for Long-tail Visual Recognition", CVPR
2021. With ``s(x) = sigmoid(v'x + d)``, eq. 5 mixes ``s (alpha z + beta) + (1 - s) z``; eq. 6 and
the released code of its classifiers have ``z + s (alpha z + beta)``, which starts at (1 + s) z. The
loss is cross-entropy with class weights ``(1 / pi_c) ** rho``, rho 1.2 (1.5 on cosines). Released:
SGD from 0.1, momentum 0.9, weight decay 5e-4 on all that is trained, batches of 256, 10 epochs,
shuffled samples; alpha starts at 1, beta at 0, v at the constant 0.1.
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

_TRAINED = ("alpha", "beta", "direction", "offset")


@method("disalign", paper="Zhang et al., CVPR 2021")
class DisAlign(OnClassifier, Tuned):
    """A trained classifier's logits, scaled and shifted by as much as a sample needs it.

    `form: sum` is the released ``z + s (alpha z + beta)``, `mix` the paper's eq. 5, which starts
    as the classifier is. The confidence s sees features of unit length with `rows: unit`; on long
    features as they are it is 1 from the start and stays so. `exponent` is rho.
    """

    kind: Literal["disalign"]
    form: Literal["sum", "mix"] = "sum"
    rows: Literal["unit", "plain"] = "unit"
    exponent: Float = Field(default=1.2, ge=0)
    sampler: Literal["balanced", "shuffle", "effective", "sqrt"] = "shuffle"
    batch_size: int = Field(default=256, ge=1)


def run(job: Job) -> dict[str, Any]:
    """Fit scales, shifts and the confidence."""
    from ltpipe.stage2.core.choosing import run_chosen

    return run_chosen(job, DisAlign, partial(_fit, job), logits)


def logits(fitted: Fitted[DisAlign], samples: Samples) -> Tensor:
    """Return the aligned logits (N, C)."""
    weights, inputs = fitted.weights, samples["features"].features
    parameters = {name: weights[name].unsqueeze(0) for name in _TRAINED}
    start = {"weight": weights["weight"], "bias": weights["bias"]}
    return _aligned(fitted.settings, start, parameters, inputs.unsqueeze(0))[0, :, 0]


def align(frozen: Tensor, confidence: Tensor, alpha: Tensor, beta: Tensor, form: str) -> Tensor:
    """Return the aligned logits (..., C) for a confidence (..., 1) in either form."""
    shifted = alpha * frozen + beta
    kept = frozen if form == "sum" else (1 - confidence) * frozen
    return kept + confidence * shifted


def _aligned(
    settings: DisAlign, start: Parameters, parameters: Parameters, inputs: Tensor
) -> Tensor:
    """Return aligned logits (1, B, P, C) of inputs (1, B, D) and parameters of P models."""
    from torch.nn import functional as F

    from ltpipe.stage2.core.heads import linear_logits

    seen = F.normalize(inputs, dim=2) if settings.rows == "unit" else inputs
    level = seen @ parameters["direction"].T + parameters["offset"]
    frozen = linear_logits(start, inputs).unsqueeze(2)
    confidence = level.sigmoid().unsqueeze(3)
    return align(frozen, confidence, parameters["alpha"], parameters["beta"], settings.form)


def _fit(job: Job, settings: DisAlign, train: FeatureStore) -> dict[str, Tensor]:
    import torch

    from ltpipe.losses.softmax import CrossEntropyLoss
    from ltpipe.losses.weights import powered_frequency_weights
    from ltpipe.stage2.core.base_classifier import base_classifier
    from ltpipe.stage2.core.fit import fit, repeated
    from ltpipe.stage2.core.heads import AutogradModel
    from ltpipe.stage2.core.logit_gradients import logit_gradient
    from ltpipe.stage2.core.retraining import recipe_of, sampling_of, training_batches
    from ltpipe.utils.seeding import generator

    recipe = recipe_of(settings)
    start = base_classifier(train, settings.initial, job.seed, job.device)
    start = {name: value.to(job.device) for name, value in start.items()}
    dimension = train.features.shape[1]
    bound = dimension**-0.5
    begin = {
        "alpha": torch.ones_like(start["bias"]),
        "beta": torch.zeros_like(start["bias"]),
        "direction": torch.full((dimension,), 0.1, device=job.device),
        "offset": (2 * torch.rand((), generator=generator(job.seed, "confidence")) - 1) * bound,
    }
    loss = CrossEntropyLoss()
    loss.reweight(powered_frequency_weights(train.class_counts, settings.exponent))
    fitted = fit(
        repeated(begin, recipe.points, job.device),
        AutogradModel(
            lambda parameters, inputs: _aligned(settings, start, parameters, inputs),
            logit_gradient(loss, device=job.device),
            _TRAINED,
        ),
        training_batches(train, sampling_of(settings), recipe.batch_size, job.seed, job.device),
        recipe,
        description=f"alignment, {recipe.points} models",
    )
    return {**fitted, **repeated(start, recipe.points, job.device)}
