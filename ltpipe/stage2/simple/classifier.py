"""A classifier retrained on frozen features, with any head, loss and sampler.

Its defaults are cRT: a fresh linear classifier under class-balanced sampling and cross-entropy.

Kang et al., "Decoupling Representation and Classifier for Long-Tailed Recognition", ICLR 2020,
section 4.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from ltpipe.config.base import Float
from ltpipe.config.losses import Loss, check_head, loss_settings
from ltpipe.config.registry import method
from ltpipe.stage2.core.settings import COSINE_SCALE, Tuned

if TYPE_CHECKING:
    from torch import Tensor

    from ltpipe.artifacts.job import Job
    from ltpipe.features.store import FeatureStore
    from ltpipe.losses.base import Loss as LossModule
    from ltpipe.stage2.core.inference import Fitted, Samples


@method("classifier", paper="Kang et al., ICLR 2020")
class Classifier(Tuned):
    """A classifier retrained on frozen features: any head, loss and sampler.

    With its defaults it is cRT. `weights` are class weights in the loss. A cosine head sees
    features of unit length, or squashed ones (`rows: squashed`), and its cosines are multiplied by
    `scale` (16 unless given) except under the losses that have a scale of their own. `initial:
    linear` starts from a linear classifier that is first fitted by plain cross-entropy.
    """

    kind: Literal["classifier"]
    head: Literal["linear", "cosine"] = "linear"
    loss: Loss = loss_settings("ce")
    weights: Literal["none", "inverse", "effective"] = "none"
    initial: Literal["random", "backbone", "linear"] = "random"
    rows: Literal["unit", "squashed"] | None = None
    scale: Float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _fits(self) -> Classifier:
        check_head(self.head, self.loss)
        if self.head == "cosine" and self.initial == "linear":
            raise ValueError("initial: linear belongs to head: linear")
        if self.head == "linear" and (self.rows is not None or self.scale is not None):
            raise ValueError("rows and scale belong to head: cosine")
        if self.loss.takes_cosines and self.scale is not None:
            raise ValueError(f"scale: loss {self.loss.name!r} has its own")
        return self

    def reads_classifier(self, role: str) -> bool:
        return self.initial == "backbone"


def run(job: Job) -> dict[str, Any]:
    """Fit the classifiers of all sweep points at once and evaluate their last epoch."""
    from ltpipe.stage2.core.batches import Rows, SquashedRows, UnitRows
    from ltpipe.stage2.core.choosing import run_chosen
    from ltpipe.stage2.core.classifiers import fit_classifiers
    from ltpipe.stage2.core.retraining import recipe_of, sampling_of

    def fit(settings: Classifier, train: FeatureStore) -> dict[str, Tensor]:
        cosine = settings.head == "cosine"
        rows = SquashedRows if settings.rows == "squashed" else UnitRows
        return fit_classifiers(
            train,
            _loss(settings, train.class_counts),
            recipe_of(settings),
            sampling_of(settings),
            job.seed,
            job.device,
            cosine=cosine,
            rows=rows if cosine else Rows,
            scale=_scale(settings),
            initial=settings.initial,
        )

    return run_chosen(job, Classifier, fit, logits)


def logits(fitted: Fitted[Classifier], samples: Samples) -> Tensor:
    """Return the logits (N, C) at test time, as the loss has them."""
    from ltpipe.stage2.core.batches import squashed_rows, unit_rows
    from ltpipe.stage2.core.heads import cosines, linear_logits

    settings, inputs = fitted.settings, samples["features"].features
    loss = _loss(settings, fitted.class_counts)
    if settings.head == "linear":
        return loss.logits(linear_logits(fitted.weights, inputs))
    rows = squashed_rows(inputs) if settings.rows == "squashed" else unit_rows(inputs)
    return loss.logits(_scale(settings) * cosines(fitted.weights["weight"], rows))


def _loss(settings: Classifier, class_counts: Sequence[int]) -> LossModule:
    from ltpipe.losses.building import build_loss
    from ltpipe.losses.weights import effective_number_weights, inverse_frequency_weights

    loss = build_loss(settings.loss, class_counts)
    if settings.weights == "inverse":
        loss.reweight(inverse_frequency_weights(class_counts))
    elif settings.weights == "effective":
        loss.reweight(effective_number_weights(class_counts))
    return loss


def _scale(settings: Classifier) -> float:
    if settings.head == "linear" or settings.loss.takes_cosines:
        return 1.0
    return settings.scale or COSINE_SCALE
