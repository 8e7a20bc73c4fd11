"""MiSLAS's second stage: label-aware smoothing on a scaled, slowly moving classifier.

Zhong et al., "Improving Calibration for Long-Tailed Recognition", CVPR 2021, section 3.3. Stage one
is trained with mixup. The paper also lets BatchNorm's statistics follow the balanced batches of its
second stage (shift learning); `shift_batch_norm` asks for features extracted after such a pass.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, model_validator

from ltpipe.config.base import Float
from ltpipe.config.registry import method
from ltpipe.stage2.core.settings import OnClassifier, Retrained

if TYPE_CHECKING:
    from torch import Tensor

    from ltpipe.artifacts.job import Job
    from ltpipe.stage2.core.inference import Fitted, Samples


@method("mislas", paper="Zhong et al., CVPR 2021")
class MiSLAS(OnClassifier, Retrained):
    """MiSLAS's second stage: label-aware smoothing, factors a class, a slowly moving classifier.

    Smoothing is `head` for the largest class, falling to `tail` for the smallest in a `shape`.
    `classifier_factor` multiplies the learning rate of the classifier itself. `shift_batch_norm`
    takes features whose BatchNorm was re-estimated on class-balanced batches.
    """

    kind: Literal["mislas"]
    head: Float = Field(default=0.3, ge=0, lt=1)
    tail: Float = Field(default=0.0, ge=0, lt=1)
    shape: Literal["concave", "linear", "convex"] = "concave"
    classifier_factor: Float = Field(default=0.2, ge=0)
    shift_batch_norm: bool = False

    @model_validator(mode="after")
    def _falls(self) -> Self:
        if self.tail > self.head:
            raise ValueError("tail must not exceed head")
        return self

    def feature_overrides(self, role: str) -> dict[str, Any]:
        return {"batch_norm": "re-estimated"} if self.shift_batch_norm else {}


def run(job: Job) -> dict[str, Any]:
    """Fit the classifiers of all sweep points at once and evaluate their last epoch."""
    from ltpipe.losses.smoothing import LabelAwareSmoothingLoss
    from ltpipe.stage2.core.classifiers import fit_scaled
    from ltpipe.stage2.core.one_backbone import finish, open_features
    from ltpipe.stage2.core.retraining import recipe_of, sampling_of

    features = open_features(job, MiSLAS)
    settings, train = features.settings, features.train
    slow = settings.classifier_factor
    weights = fit_scaled(
        train,
        LabelAwareSmoothingLoss(train.class_counts, settings.head, settings.tail, settings.shape),
        recipe_of(settings, weight=slow, bias=slow),
        sampling_of(settings),
        job.seed,
        job.device,
        initial=settings.initial,
        trained=("weight", "bias", "scale"),
    )
    return finish(job, features, logits, weights)


def logits(fitted: Fitted[MiSLAS], samples: Samples) -> Tensor:
    """Return the scaled logits (N, C)."""
    from ltpipe.stage2.core.heads import linear_logits

    return linear_logits(fitted.weights, samples["features"].features)
