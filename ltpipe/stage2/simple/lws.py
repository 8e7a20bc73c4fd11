"""Learnable weight scaling: ``scale_c (w_c . x + b_c)`` with only the scales learned.

Kang et al., ICLR 2020, section 4.2; the scale multiplies the whole logit, as in the released code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from ltpipe.config.losses import Loss, loss_settings
from ltpipe.config.registry import method
from ltpipe.stage2.core.settings import OnClassifier, Retrained

if TYPE_CHECKING:
    from torch import Tensor

    from ltpipe.artifacts.job import Job
    from ltpipe.stage2.core.inference import Fitted, Samples


@method("lws", paper="Kang et al., ICLR 2020")
class LWS(OnClassifier, Retrained):
    """Learnable weight scaling: a trained classifier with one learned factor a class."""

    kind: Literal["lws"]
    loss: Loss = loss_settings("ce")
    epochs: int = Field(default=5, ge=1)

    @model_validator(mode="after")
    def _fits(self) -> LWS:
        if self.loss.takes_cosines:
            raise ValueError(f"loss {self.loss.name!r} takes cosines, which have no factors")
        return self


def run(job: Job) -> dict[str, Any]:
    """Fit the scales of all sweep points at once and evaluate their last epoch."""
    from ltpipe.losses.building import build_loss
    from ltpipe.stage2.core.classifiers import fit_scaled
    from ltpipe.stage2.core.one_backbone import finish, open_features
    from ltpipe.stage2.core.retraining import recipe_of, sampling_of

    features = open_features(job, LWS)
    settings, train = features.settings, features.train
    weights = fit_scaled(
        train,
        build_loss(settings.loss, train.class_counts),
        recipe_of(settings),
        sampling_of(settings),
        job.seed,
        job.device,
        initial=settings.initial,
        trained=("scale",),
    )
    return finish(job, features, logits, weights)


def logits(fitted: Fitted[LWS], samples: Samples) -> Tensor:
    """Return the scaled logits (N, C)."""
    from ltpipe.stage2.core.heads import linear_logits

    return linear_logits(fitted.weights, samples["features"].features)
