"""Post-hoc logit adjustment: the trained classifier's logits less ``tau log p``.

Menon et al., "Long-Tail Learning via Logit Adjustment", ICLR 2021, eq. 9.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import field_validator

from ltpipe.config.base import Float
from ltpipe.config.methods import MethodSettings, OneBackbone, exponents, points
from ltpipe.config.registry import method

if TYPE_CHECKING:
    from torch import Tensor

    from ltpipe.artifacts.job import Job
    from ltpipe.stage2.core.inference import Fitted, Samples


@method("logit-adjusted", paper="Menon et al., ICLR 2021")
class LogitAdjusted(MethodSettings):
    """The stage-one classifier's logits less tau times the log prior; nothing is trained."""

    kind: Literal["logit-adjusted"]
    backbones: OneBackbone
    tau: Float | list[Float] = 1.0

    _check_tau = field_validator("tau")(exponents)

    def points(self) -> list[dict[str, float]]:
        return points("tau", self.tau) if isinstance(self.tau, list) else [{}]

    def reads_classifier(self, role: str) -> bool:
        return True


def run(job: Job) -> dict[str, Any]:
    """Evaluate the adjusted logits of the backbone's own classifier at every tau."""
    import torch

    from ltpipe.stage2.core.one_backbone import finish, open_features
    from ltpipe.stage2.core.results import class_logits
    from ltpipe.utils.errors import InputError

    features = open_features(job, LogitAdjusted)
    if class_logits(features.test) is None:
        raise InputError(f"{features.test.path}: has no logits to adjust")
    grid = features.settings.tau
    taus = torch.tensor(grid if isinstance(grid, list) else [grid])
    return finish(job, features, logits, {"tau": taus})


def logits(fitted: Fitted[LogitAdjusted], samples: Samples) -> Tensor:
    """Return the backbone's logits (N, C) less tau times the log prior."""
    from ltpipe.losses.base import checked_counts

    own = samples["features"].logits
    assert own is not None
    counts = checked_counts(fitted.class_counts)
    log_prior = (counts / counts.sum()).log().float().to(own.device)
    return own - fitted.weights["tau"] * log_prior
