"""The nearest class mean.

Kang et al., ICLR 2020, section 4.2, with the released code's transform: the training mean is
subtracted, features are brought to unit length, and class means are not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from ltpipe.config.methods import MethodSettings, OneBackbone
from ltpipe.config.registry import method

if TYPE_CHECKING:
    from torch import Tensor

    from ltpipe.artifacts.job import Job
    from ltpipe.stage2.core.inference import Fitted, Samples


@method("ncm", paper="Kang et al., ICLR 2020")
class NCM(MethodSettings):
    """The nearest class mean of centred features of unit length; nothing is trained."""

    kind: Literal["ncm"]
    backbones: OneBackbone
    distance: Literal["euclidean", "cosine"] = "euclidean"


def run(job: Job) -> dict[str, Any]:
    """Compute the class means and evaluate them."""
    import torch
    from torch.nn import functional as F

    from ltpipe.stage2.core.class_means import class_means
    from ltpipe.stage2.core.one_backbone import finish, open_features

    features = open_features(job, NCM)
    train = torch.from_numpy(features.train.features).to(job.device)
    labels = torch.from_numpy(features.train.labels).to(job.device)
    centre = train.mean(0)
    means = class_means(F.normalize(train - centre, dim=1), labels, features.classes)
    return finish(job, features, logits, {"means": means[None], "centre": centre[None]})


def logits(fitted: Fitted[NCM], samples: Samples) -> Tensor:
    """Return how close centred unit features are to the class means: see `closeness`."""
    from torch.nn import functional as F

    from ltpipe.stage2.core.class_means import closeness

    units = F.normalize(samples["features"].features - fitted.weights["centre"], dim=1)
    return closeness(units, fitted.weights["means"], fitted.settings.distance)
