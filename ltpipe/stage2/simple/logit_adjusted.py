"""Post-hoc logit adjustment: the trained classifier's logits less ``tau log p``.

Menon et al., "Long-Tail Learning via Logit Adjustment", ICLR 2021, eq. 9.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import field_validator

from ltpipe.config.base import Float
from ltpipe.config.methods import exponents, points
from ltpipe.config.registry import method
from ltpipe.stage2.core.settings import OnClassifier

if TYPE_CHECKING:
    from torch import Tensor

    from ltpipe.artifacts.job import Job
    from ltpipe.stage2.core.inference import Fitted, Samples


@method("logit-adjusted", paper="Menon et al., ICLR 2021")
class LogitAdjusted(OnClassifier):
    """A trained classifier's logits less tau times the log prior."""

    kind: Literal["logit-adjusted"]
    tau: Float | list[Float] = 1.0

    _check_tau = field_validator("tau")(exponents)

    def points(self) -> list[dict[str, float]]:
        return points("tau", self.tau) if isinstance(self.tau, list) else [{}]


def run(job: Job) -> dict[str, Any]:
    """Evaluate the classifier's adjusted logits at every tau."""
    import torch

    from ltpipe.stage2.core.base_classifier import base_classifier
    from ltpipe.stage2.core.fit import repeated
    from ltpipe.stage2.core.one_backbone import finish, open_features
    from ltpipe.stage2.core.results import class_logits
    from ltpipe.utils.errors import InputError

    features = open_features(job, LogitAdjusted)
    settings, train = features.settings, features.train
    grid = settings.tau if isinstance(settings.tau, list) else [settings.tau]
    weights = {"tau": torch.tensor(grid)}
    if settings.initial == "linear":
        start = base_classifier(train, settings.initial, job.seed, job.device)
        weights |= repeated(start, len(grid), job.device)
    elif class_logits(features.test) is None:
        raise InputError(
            f"{features.test.path}: has no logits to adjust; initial: linear fits a classifier"
        )
    return finish(job, features, logits, weights)


def logits(fitted: Fitted[LogitAdjusted], samples: Samples) -> Tensor:
    """Return the classifier's logits (N, C) less tau times the log prior."""
    from ltpipe.losses.base import checked_counts
    from ltpipe.stage2.core.heads import linear_logits

    given = samples["features"]
    own = linear_logits(fitted.weights, given.features) if "weight" in fitted.weights else None
    own = given.logits if own is None else own
    assert own is not None
    counts = checked_counts(fitted.class_counts)
    log_prior = (counts / counts.sum()).log().float().to(own.device)
    return own - fitted.weights["tau"] * log_prior
