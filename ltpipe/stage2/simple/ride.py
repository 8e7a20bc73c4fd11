"""RIDE on cached features: several experts under one loss that keeps them apart.

Wang et al., "Long-tailed Recognition by Routing Diverse Distribution-Aware Experts", ICLR 2021. The
paper's experts share a network's first stages and have their last ones apart; on cached features
they are classifiers, as DLSA embeds them. Logits are the experts' mean; there is no routing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from ltpipe.config.base import Float
from ltpipe.config.losses import Loss, check_head, loss_settings
from ltpipe.config.registry import method
from ltpipe.stage2.core.settings import Retrained

if TYPE_CHECKING:
    from torch import Tensor

    from ltpipe.artifacts.job import Job
    from ltpipe.stage2.core.inference import Fitted, Samples


@method("ride", paper="Wang et al., ICLR 2021")
class RIDE(Retrained):
    """Several experts on the same features, kept apart by a diversity term.

    `diversity` weighs the divergence from the experts' mean (negative: apart), `reweight_from`
    is the 0-based epoch from which class weights and class-wise temperatures act (four fifths of
    all epochs unless given), `temperature_share` how far temperatures follow class counts.
    """

    kind: Literal["ride"]
    experts: int = Field(default=2, ge=1)
    head: Literal["linear", "cosine"] = "cosine"
    loss: Loss = loss_settings("ldam")
    scale: Float = Field(default=30.0, gt=0)
    diversity: Float = -0.2
    temperature_share: Float = Field(default=0.05, ge=0, le=1)
    reweight_from: int | None = Field(default=None, ge=0)
    sampler: Literal["balanced", "shuffle", "effective", "sqrt"] = "shuffle"

    @model_validator(mode="after")
    def _fits(self) -> RIDE:
        if self.loss.name not in ("ce", "ldam"):
            raise ValueError(f"loss: experts are trained by ce or ldam, not by {self.loss.name}")
        check_head(self.head, self.loss)
        if self.head == "linear" and "scale" in self.model_fields_set:
            raise ValueError("scale belongs to head: cosine")
        return self


def run(job: Job) -> dict[str, Any]:
    """Fit the experts of all sweep points at once and evaluate their last epoch."""
    from ltpipe.losses.building import build_loss
    from ltpipe.stage2.core.experts import DiversityGradient, fit_experts
    from ltpipe.stage2.core.one_backbone import finish, open_features
    from ltpipe.stage2.core.retraining import recipe_of, sampling_of

    features = open_features(job, RIDE)
    settings, train = features.settings, features.train
    cosine, loss, start = settings.head == "cosine", settings.loss, settings.reweight_from
    if loss.takes_cosines:
        loss = loss.model_copy(update={"scale": settings.scale})
    gradient = DiversityGradient(
        build_loss(loss, train.class_counts),
        train.class_counts,
        job.device,
        experts=settings.experts,
        reweight_from=4 * settings.epochs // 5 if start is None else start,
        diversity=settings.diversity,
        temperature_share=settings.temperature_share,
        scale=settings.scale if cosine else 1.0,
    )
    weights = fit_experts(
        train,
        gradient,
        recipe_of(settings),
        sampling_of(settings),
        job.seed,
        job.device,
        cosine=cosine,
    )
    experts = {name: value.unflatten(0, (-1, settings.experts)) for name, value in weights.items()}
    return finish(job, features, logits, experts)


def logits(fitted: Fitted[RIDE], samples: Samples) -> Tensor:
    """Return the experts' mean logits (N, C)."""
    from ltpipe.stage2.core.experts import mean_cosines, mean_logits

    settings, inputs = fitted.settings, samples["features"].features
    if settings.head == "linear":
        return mean_logits(fitted.weights, inputs)
    return mean_cosines(fitted.weights, inputs, settings.scale)
