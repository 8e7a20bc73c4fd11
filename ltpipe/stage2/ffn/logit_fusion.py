"""FFN's ablation (Fig. 4, eq. 11): mix the two stage-one classifiers' outputs, train nothing.

The paper does not say whether probabilities or logits are mixed; both can be asked for. Logits of
the KPS branch are its scaled cosines.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ltpipe.artifacts.job import Job
from ltpipe.stage2.core.inference import Fitted, Samples, evaluate_points
from ltpipe.stage2.core.results import class_logits, method_settings, open_stores
from ltpipe.stage2.ffn.settings import LogitFusion
from ltpipe.utils.errors import InputError


def fuse(ce: Tensor, kps: Tensor, w1: float, space: str) -> Tensor:
    """Return class probabilities (N, C) from two branches' logits (N, C); w1 weighs `kps`."""
    if space == "probability":
        return w1 * torch.softmax(kps, dim=1) + (1 - w1) * torch.softmax(ce, dim=1)
    return torch.softmax(w1 * kps + (1 - w1) * ce, dim=1)


def run(job: Job) -> dict[str, Any]:
    """Evaluate the mixtures at every coefficient."""
    settings = method_settings(job, LogitFusion, ["ce", "kps"])
    test = open_stores(job, "test")
    for store in test.values():
        if class_logits(store) is None:
            raise InputError(f"{store.path}: has no logits to fuse")
    w1 = torch.tensor([point["w1"] for point in settings.points()])
    return evaluate_points(job, settings, test, logits, {"w1": w1})


def logits(fitted: Fitted[LogitFusion], samples: Samples) -> Tensor:
    """Return the log-probabilities (N, C) of the mixtures: their softmax is what they are of."""
    ce, kps = samples["ce"].logits, samples["kps"].logits
    assert ce is not None and kps is not None
    return fuse(ce, kps, fitted.point["w1"], fitted.settings.space).log()
