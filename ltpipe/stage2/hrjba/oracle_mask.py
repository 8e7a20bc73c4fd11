"""What an oracle that tells head from tail gives to stage one's own classifier.

HRJBA's paper assumes that a test sample is known to be of a head or of a tail class; so here are
the logits of any classifier, those outside the sample's group left out.
"""

from __future__ import annotations

from typing import Any

import torch

from ltpipe.artifacts.job import Job
from ltpipe.config.methods import OracleMask
from ltpipe.stage2.core.decoupled import finish, open_features
from ltpipe.stage2.core.results import class_logits, linear_classifier_of
from ltpipe.stage2.hrjba.groups import group_rows, masked, sample_groups
from ltpipe.utils.errors import InputError


def run(job: Job) -> dict[str, Any]:
    """Evaluate the cached logits within each sample's true group."""
    features = open_features(job, OracleMask)
    logits = class_logits(features.test)
    if logits is None:
        raise InputError(f"{features.test.path}: has no logits to mask")
    share = features.settings.tail_share
    tail, of_tail = sample_groups(features.test, share)
    scores = masked(torch.from_numpy(logits), tail, of_tail)
    weight, bias = linear_classifier_of(features.train)
    rows = group_rows(scores.argmax(1).numpy(), features.test, share, features.settings.protocol())
    return finish(
        job,
        features,
        lambda fitted, samples: scores,
        {"weight": weight[None], "bias": bias[None]},
        more_rows=[rows],
    )
