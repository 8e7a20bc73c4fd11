"""The classifier that stage one trained, as it stands: what other methods are read against."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from ltpipe.config.methods import MethodSettings, OneBackbone
from ltpipe.config.registry import method

if TYPE_CHECKING:
    from torch import Tensor

    from ltpipe.artifacts.job import Job
    from ltpipe.stage2.core.inference import Fitted, Samples


@method("backbone-head", paper="joint training in Kang et al., ICLR 2020")
class BackboneHead(MethodSettings):
    """The classifier that stage one trained, as it stands."""

    kind: Literal["backbone-head"]
    backbones: OneBackbone

    def reads_classifier(self, role: str) -> bool:
        return True


def run(job: Job) -> dict[str, Any]:
    """Evaluate the cached logits of the backbone's own classifier."""
    from ltpipe.stage2.core.one_backbone import finish, open_features
    from ltpipe.stage2.core.results import class_logits, classifier_of
    from ltpipe.utils.errors import InputError

    features = open_features(job, BackboneHead)
    if class_logits(features.test) is None:
        raise InputError(
            f"{features.test.path}: has no logits, so there is no classifier to evaluate"
        )
    weight, bias = classifier_of(features.train)
    weights = {"weight": weight[None]} | ({} if bias is None else {"bias": bias[None]})
    return finish(job, features, logits, weights)


def logits(fitted: Fitted[BackboneHead], samples: Samples) -> Tensor:
    """Return the backbone's own logits (N, C)."""
    own = samples["features"].logits
    assert own is not None
    return own
