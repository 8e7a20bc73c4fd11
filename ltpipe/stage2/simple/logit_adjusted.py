"""Post-hoc logit adjustment: the trained classifier's logits less ``tau log p``.

Menon et al., "Long-Tail Learning via Logit Adjustment", ICLR 2021, eq. 9.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ltpipe.artifacts.job import Job
from ltpipe.config.methods import LogitAdjusted
from ltpipe.losses.base import checked_counts
from ltpipe.stage2.core.inference import Fitted, Samples
from ltpipe.stage2.core.one_backbone import finish, open_features
from ltpipe.stage2.core.results import class_logits
from ltpipe.utils.errors import InputError


def run(job: Job) -> dict[str, Any]:
    """Evaluate the adjusted logits of the backbone's own classifier at every tau."""
    features = open_features(job, LogitAdjusted)
    if class_logits(features.test) is None:
        raise InputError(f"{features.test.path}: has no logits to adjust")
    grid = features.settings.tau
    taus = torch.tensor(grid if isinstance(grid, list) else [grid])
    return finish(job, features, logits, {"tau": taus})


def logits(fitted: Fitted[LogitAdjusted], samples: Samples) -> Tensor:
    """Return the backbone's logits (N, C) less tau times the log prior."""
    own = samples["features"].logits
    assert own is not None
    counts = checked_counts(fitted.class_counts)
    log_prior = (counts / counts.sum()).log().float().to(own.device)
    return own - fitted.weights["tau"] * log_prior
