"""Tau-normalisation: the trained classifier's rows divided by ``|w_c| ** tau``, without bias.

Kang et al., ICLR 2020, eq. 3. The released code chooses tau on the validation set of ImageNet-LT
and on the test set of iNaturalist; here it is never chosen on the test set.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ltpipe.artifacts.job import Job
from ltpipe.config.methods import TauNorm
from ltpipe.features.store import FeatureStore
from ltpipe.stage2.core.inference import Fitted, Samples
from ltpipe.stage2.core.one_backbone import finish, open_features
from ltpipe.stage2.core.results import classifier_of
from ltpipe.utils.errors import InputError
from ltpipe.utils.progress import say


def run(job: Job) -> dict[str, Any]:
    """Evaluate every tau, or the one that is best on held-out samples."""
    features = open_features(job, TauNorm)
    settings = features.settings
    weight, _ = classifier_of(features.train)
    taus = settings.tau if isinstance(settings.tau, list) else [settings.tau]
    facts: dict[str, Any] = {}
    if settings.needs_validation():
        taus = [_select(job, taus)]
        facts = {"tau": taus[0]}
    weights = torch.stack([normalised(weight, tau) for tau in taus])
    return finish(job, features, logits, {"weight": weights, "tau": torch.tensor(taus)}, **facts)


def logits(fitted: Fitted[TauNorm], samples: Samples) -> Tensor:
    """Return the products (N, C) with the normalised rows."""
    return samples["features"].features @ fitted.weights["weight"].T


def normalised(weight: Tensor, tau: float) -> Tensor:
    """Return a weight (C, D) with row c divided by its norm to the power of tau."""
    norms = torch.linalg.vector_norm(weight, dim=1, keepdim=True).clamp_min(1e-12)
    return weight / norms**tau


def _select(job: Job, taus: Sequence[float]) -> float:
    """Return the tau of the best mean class accuracy on held-out samples.

    Few samples make many equals; of these the one in the middle is taken.
    """
    folder = job.inputs.get("tuning.features", job.inputs["features.features"])
    held_out = FeatureStore.open(folder / "val.h5")
    if not len(held_out.labels):
        raise InputError(
            f"{held_out.path}: has no samples to choose tau by; give the data set a validation "
            "part, or set select: none"
        )
    weight, _ = classifier_of(FeatureStore.open(folder / "train.h5", skip=("views",)))
    inputs = torch.from_numpy(held_out.features)
    accuracies = [
        _mean_class_accuracy((inputs @ normalised(weight, tau).T).argmax(1).numpy(), held_out)
        for tau in taus
    ]
    equals = np.flatnonzero(np.isclose(accuracies, max(accuracies)))
    best = int(equals[len(equals) // 2])
    say(f"tau {taus[best]:g}: mean class accuracy {accuracies[best]:.1%} on held-out samples")
    return taus[best]


def _mean_class_accuracy(predicted: np.ndarray, store: FeatureStore) -> float:
    hits = np.bincount(store.labels, weights=predicted == store.labels)
    counts = np.bincount(store.labels)
    return float((hits[counts > 0] / counts[counts > 0]).mean())
