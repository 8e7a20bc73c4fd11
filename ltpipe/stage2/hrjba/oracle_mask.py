"""What an oracle that tells head from tail gives to stage one's own classifier.

HRJBA's paper assumes that a test sample is known to be of a head or of a tail class; so here are
the logits of any classifier, those outside the sample's group left out.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ltpipe.artifacts.job import Job
from ltpipe.data.head_tail import tail_classes
from ltpipe.stage2.core.inference import Fitted, Samples
from ltpipe.stage2.core.one_backbone import finish, open_features
from ltpipe.stage2.core.results import class_logits, linear_classifier_of
from ltpipe.stage2.hrjba.groups import group_rows, masked
from ltpipe.stage2.hrjba.settings import OracleMask
from ltpipe.utils.errors import InputError


def run(job: Job) -> dict[str, Any]:
    """Evaluate the cached logits within each sample's true group."""
    features = open_features(job, OracleMask)
    settings, test = features.settings, features.test
    if class_logits(test) is None:
        raise InputError(f"{test.path}: has no logits to mask")
    weight, bias = linear_classifier_of(features.train)

    def by_group(place: int, probabilities: np.ndarray) -> pd.DataFrame:
        return group_rows(probabilities.argmax(1), test, settings.tail_share, settings.protocol())

    weights = {"weight": weight[None], "bias": bias[None]}
    return finish(job, features, logits, weights, more_rows=by_group)


def logits(fitted: Fitted[OracleMask], samples: Samples) -> Tensor:
    """Return the backbone's logits (N, C), -inf outside the true group of each sample."""
    embedded = samples["features"]
    assert embedded.logits is not None
    assert embedded.labels is not None, "only an oracle is told the labels"
    share = fitted.settings.tail_share
    tail = torch.from_numpy(tail_classes(fitted.class_counts, share)).to(embedded.labels.device)
    return masked(embedded.logits, tail, tail[embedded.labels])
