"""The classifier that stage one trained, as it stands: what other methods are read against."""

from __future__ import annotations

from typing import Any

import torch

from ltpipe.config.methods import OwnClassifier
from ltpipe.errors import InputError
from ltpipe.job import Job
from ltpipe.stage2.results import (
    class_logits,
    classifier_of,
    manifest_facts,
    method_settings,
    open_stores,
    write_results,
)


def run(job: Job) -> dict[str, Any]:
    """Evaluate the cached logits of the backbone's own classifier."""
    settings = method_settings(job, OwnClassifier, ["features"])
    train = open_stores(job, "train", skip=("views",))["features"]
    test = open_stores(job, "test")["features"]
    logits = class_logits(test)
    if logits is None:
        raise InputError(f"{test.path}: has no logits, so there is no classifier to evaluate")
    weight, bias = classifier_of(train)
    probabilities = torch.softmax(torch.from_numpy(logits), dim=1).numpy()
    weights = {"weight": weight[None]} | ({} if bias is None else {"bias": bias[None]})
    write_results(
        job,
        [probabilities],
        points=[{}],
        protocol=settings.protocol(),
        test=test,
        weights=weights,
    )
    return manifest_facts(settings.protocol(), [{}])
