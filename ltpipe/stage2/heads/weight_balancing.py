"""Weight balancing: strong weight decay and a bound on the norms of the classifier's rows.

Alshammari et al., "Long-Tailed Recognition via Weight Balancing", CVPR 2022, and the released code:
from stage one's classifier, on raw features, ``v_y / C [-log p_y - sum_{j != y} log(1 - p_j)]``
with softmax probabilities p and v the inverse effective numbers (Cui et al., CVPR 2019, beta
0.9999, summing to C), weight decay, and MaxNorm ``w_c <- min(1, delta / |w_c|) w_c``, eq. 5. delta
is ``min |w| + f (max |w| - min |w|)`` of the rows at the start, f = 0.1, and the bias is left
alone. The paper projects after each batch, the released code after each epoch, as here. Released
for CIFAR-100-LT: SGD 0.01, momentum 0.9, weight decay 0.1, 10 epochs, batches of 64, cosine.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator

from ltpipe.config.base import Float
from ltpipe.config.methods import different
from ltpipe.config.registry import method
from ltpipe.stage2.core.settings import OnClassifier, Tuned

if TYPE_CHECKING:
    from torch import Tensor

    from ltpipe.artifacts.job import Job
    from ltpipe.features.store import FeatureStore
    from ltpipe.stage2.core.inference import Fitted, Samples


@method("weight-balancing", paper="Alshammari et al., CVPR 2022")
class WeightBalancing(OnClassifier, Tuned):
    """A trained classifier under class-balanced loss, strong weight decay and bounded row norms.

    `max_norm` places the bound between the smallest (0) and the largest (1) row norm at the start;
    null sets none. `objective: binary` is the released sum of binary cross-entropies of softmax
    probabilities, C times smaller than `softmax`, weighted cross-entropy, so the same decay
    acts C times stronger.
    """

    swept = ("learning_rate", "weight_decay", "max_norm")

    kind: Literal["weight-balancing"]
    objective: Literal["binary", "softmax"] = "binary"
    max_norm: Float | list[Float] | None = 0.1
    beta: Float = Field(default=0.9999, ge=0, lt=1)
    sampler: Literal["balanced", "shuffle", "effective", "sqrt"] = "shuffle"
    batch_size: int = Field(default=64, ge=1)
    learning_rate: Float | list[Float] = 0.01
    weight_decay: Float | list[Float] = [1e-3, 1e-2, 0.03, 0.1, 0.3, 1.0]  # noqa: RUF012
    select: Literal["validation", "none"] = "validation"

    @field_validator("max_norm")
    @classmethod
    def _not_negative(cls, value: Any) -> Any:
        if value is not None and min(different("max_norm", value)) < 0:
            raise ValueError("max_norm must be at least 0, or null")
        return value


def run(job: Job) -> dict[str, Any]:
    """Fit all points of the sweep at once, and choose one by held-out samples."""
    from ltpipe.stage2.core.choosing import run_chosen

    return run_chosen(job, WeightBalancing, partial(_fit, job), logits)


def logits(fitted: Fitted[WeightBalancing], samples: Samples) -> Tensor:
    """Return the logits (N, C)."""
    from ltpipe.stage2.core.heads import linear_logits

    return linear_logits(fitted.weights, samples["features"].features)


def bound(weight: Tensor, share: float) -> float:
    """Return delta of a weight (C, D): the norm that lies `share` of the way up the rows' norms."""
    norms = weight.norm(dim=1)
    low, high = float(norms.min()), float(norms.max())
    return low + share * (high - low)


def project(weight: Tensor, bounds: Tensor) -> None:
    """Shorten the rows of weights (P, C, D) in place to at most the bound (P,) of their model."""
    norms = weight.norm(dim=2, keepdim=True).clamp_min(1e-12)
    weight.mul_((bounds.view(-1, 1, 1) / norms).clamp(max=1))


def _fit(job: Job, settings: WeightBalancing, train: FeatureStore) -> dict[str, Tensor]:
    import torch

    from ltpipe.losses.reweight import BinarySoftmaxLoss, ClassBalancedLoss
    from ltpipe.stage2.core.base_classifier import base_classifier
    from ltpipe.stage2.core.fit import Parameters, fit, repeated
    from ltpipe.stage2.core.heads import LinearModel
    from ltpipe.stage2.core.logit_gradients import logit_gradient
    from ltpipe.stage2.core.retraining import recipe_of, sampling_of, training_batches

    recipe = recipe_of(settings)
    start = base_classifier(train, settings.initial, job.seed, job.device)
    kind = BinarySoftmaxLoss if settings.objective == "binary" else ClassBalancedLoss
    loss = kind(train.class_counts, settings.beta)
    on_epoch = None
    if settings.max_norm is not None:
        norm: Any = settings.max_norm
        shares = [point.get("max_norm", norm) for point in settings.grid()]
        bounds = torch.tensor([bound(start["weight"], share) for share in shares])
        bounds = bounds.to(job.device)

        def on_epoch(epoch: int, parameters: Parameters) -> None:
            project(parameters["weight"], bounds)

    return fit(
        repeated(start, recipe.points, job.device),
        LinearModel(logit_gradient(loss, device=job.device), ("weight", "bias")),
        training_batches(train, sampling_of(settings), recipe.batch_size, job.seed, job.device),
        recipe,
        on_epoch=on_epoch,
        description=f"balanced weights, {recipe.points} models",
    )
