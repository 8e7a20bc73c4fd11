"""M2m in feature space: a classifier on samples of rare classes translated from frequent ones.

Kim et al., "M2m: Imbalanced Classification via Major-to-Minor Translation", CVPR 2020; see
`ltpipe.stage2.core.translation`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from ltpipe.config.base import Float
from ltpipe.config.registry import method
from ltpipe.stage2.core.settings import Retrained

if TYPE_CHECKING:
    from torch import Tensor

    from ltpipe.artifacts.job import Job
    from ltpipe.stage2.core.inference import Fitted, Samples


@method("m2m", paper="Kim et al., CVPR 2020")
class M2M(Retrained):
    """Major-to-minor translation of features.

    `beta` shapes the choice of seeds, `penalty` weighs the seed class's logit, `steps` of
    `step_size` times the mean feature norm are taken from a start disturbed by `noise` times a
    step, and a sample is kept that the stage-one classifier is sure of by `confidence`.
    """

    kind: Literal["m2m"]
    initial: Literal["random", "backbone"] = "backbone"
    beta: Float = Field(default=0.999, ge=0, lt=1)
    penalty: Float = Field(default=0.5, ge=0)
    steps: int = Field(default=10, ge=1)
    step_size: Float = Field(default=0.1, gt=0)
    noise: Float = Field(default=0.5, ge=0)
    confidence: Float = Field(default=0.9, ge=0, lt=1)

    def reads_classifier(self, role: str) -> bool:
        return True


def run(job: Job) -> dict[str, Any]:
    """Fit the classifiers of all sweep points at once and evaluate their last epoch."""
    from ltpipe.stage2.core.one_backbone import finish, open_features
    from ltpipe.stage2.core.retraining import recipe_of, sampling_of
    from ltpipe.stage2.core.translation import Translation, fit_translated

    features = open_features(job, M2M)
    settings = features.settings
    weights = fit_translated(
        features.train,
        Translation(
            beta=settings.beta,
            penalty=settings.penalty,
            steps=settings.steps,
            step_size=settings.step_size,
            noise=settings.noise,
            confidence=settings.confidence,
        ),
        recipe_of(settings),
        sampling_of(settings),
        job.seed,
        job.device,
        initial=settings.initial,
    )
    return finish(job, features, logits, weights)


def logits(fitted: Fitted[M2M], samples: Samples) -> Tensor:
    """Return the logits (N, C)."""
    from ltpipe.stage2.core.heads import linear_logits

    return linear_logits(fitted.weights, samples["features"].features)
