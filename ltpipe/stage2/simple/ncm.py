"""The nearest class mean.

Kang et al., ICLR 2020, section 4.2, with the released code's transform: the training mean is
subtracted, features are brought to unit length, and class means are not.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ltpipe.artifacts.job import Job
from ltpipe.config.methods import NCM
from ltpipe.stage2.core.inference import Fitted, Samples
from ltpipe.stage2.core.one_backbone import finish, open_features


def run(job: Job) -> dict[str, Any]:
    """Compute the class means and evaluate them."""
    features = open_features(job, NCM)
    train = torch.from_numpy(features.train.features).to(job.device)
    labels = torch.from_numpy(features.train.labels).to(job.device)
    centre = train.mean(0)
    means = class_means(F.normalize(train - centre, dim=1), labels, features.classes)
    return finish(job, features, logits, {"means": means[None], "centre": centre[None]})


def logits(fitted: Fitted[NCM], samples: Samples) -> Tensor:
    """Return how close centred unit features are to the class means: see `closeness`."""
    units = F.normalize(samples["features"].features - fitted.weights["centre"], dim=1)
    return closeness(units, fitted.weights["means"], fitted.settings.distance)


def class_means(features: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Return the mean feature (C, D) of each class of features (N, D), labels (N,)."""
    sums = torch.zeros(classes, features.shape[1], device=features.device)
    sums.index_add_(0, labels, features)
    counts = torch.bincount(labels, minlength=classes).clamp(min=1)
    return sums / counts.unsqueeze(1)


def closeness(features: Tensor, means: Tensor, distance: str) -> Tensor:
    """Return minus the squared distance, or the cosine, to each class mean, (N, C)."""
    if distance == "cosine":
        return F.normalize(features, dim=1) @ F.normalize(means, dim=1).T
    if torch.compiler.is_compiling():
        # The same sums; ONNX has no distance that leaves products out.
        return -(features.unsqueeze(1) - means).square().sum(2)
    return -torch.cdist(features, means, compute_mode="donot_use_mm_for_euclid_dist").square()
