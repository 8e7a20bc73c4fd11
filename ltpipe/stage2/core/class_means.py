"""Class means of features, and how close features are to them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


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
