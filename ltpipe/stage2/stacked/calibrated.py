"""One method's probabilities, corrected by held-out samples: see the settings.

The method is trained without the held-out samples, which then correct it and give the scores that
sets are made by, and once on all for the test. With several folds every training sample is held out
once, as in cross-conformal prediction (Vovk, Annals of Mathematics and AI 2015).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ltpipe.artifacts.job import Job
from ltpipe.config.base import canonical_json
from ltpipe.features.store import FeatureStore
from ltpipe.stage2.core.calibration import calibrate, calibrated
from ltpipe.stage2.core.conformal import RULES, members, set_metrics, thresholds
from ltpipe.stage2.core.inference import Fitted, Samples, evaluate_points
from ltpipe.stage2.core.label_shift import estimated_prior, moved_posteriors, shifted_places
from ltpipe.stage2.core.results import method_settings, open_stores, under
from ltpipe.stage2.stacked.members import held_out_members, member_logs, run_members
from ltpipe.stage2.stacked.settings import Calibrated


def run(job: Job) -> dict[str, Any]:
    """Train the member, fit the correction, and evaluate probabilities, sets and shifted parts."""
    roles = list(under(job.inputs, "features"))
    settings = method_settings(job, Calibrated, roles)
    names = list(settings.members)
    held_out = held_out_members(job, roles, names, settings.folds)
    (logs,) = held_out.logs
    counts = held_out.class_counts
    scale, bias = calibrate(logs, held_out.labels, counts, settings.form)
    posteriors = np.exp(calibrated(logs, scale, bias))
    source = posteriors.mean(0)
    target = np.full_like(source, 1 / len(source)) if settings.prior == "uniform" else source
    scores = moved_posteriors(posteriors, source, target)
    folders = {role: job.inputs[f"features.{role}"] for role in roles}
    trained = run_members(job, folders, names)
    tensors = {
        **trained.weights,
        "scale": torch.from_numpy(scale).float()[None],
        "bias": torch.from_numpy(bias).float()[None],
        "source": torch.from_numpy(source).float()[None],
        "target": torch.from_numpy(target).float()[None],
        "held_out": torch.from_numpy(scores).float()[None],
        "held_out_labels": torch.from_numpy(held_out.labels)[None],
    }
    test = open_stores(job, "test")
    first = next(iter(test.values()))

    def more_rows(place: int, probabilities: np.ndarray) -> pd.DataFrame:
        found = {}
        if settings.coverage is not None:
            for rule in RULES:
                limits = thresholds(scores, held_out.labels, counts, settings.coverage, rule)
                sets = members(probabilities, limits, counts, rule)
                found[f"sets-{settings.coverage:g}+{rule}"] = set_metrics(sets, first.labels)
        for ratio in settings.shifts:
            found |= _shifted(probabilities, first, ratio, source, target)
        return _rows(place, found)

    return evaluate_points(
        job,
        settings,
        test,
        logits,
        tensors,
        more_rows=more_rows,
        members=trained.facts,
        held_out=len(held_out.labels),
    )


def logits(fitted: Fitted[Calibrated], samples: Samples) -> Tensor:
    """Return the corrected log-probabilities (N, C), moved to the prior that is asked for."""
    weights = fitted.weights
    (log,) = member_logs(fitted, samples)
    corrected = torch.log_softmax(weights["scale"] * log + weights["bias"], dim=1)
    floor = torch.finfo(torch.float32).tiny
    return corrected + (weights["target"] / weights["source"].clamp_min(floor)).log()


def _shifted(
    probabilities: np.ndarray,
    test: FeatureStore,
    ratio: float,
    source: np.ndarray,
    target: np.ndarray,
) -> dict[str, dict[str, float]]:
    """Return the accuracy on the test set's forward and backward parts, by protocol."""
    found = {}
    for direction in ("forward", "backward"):
        places = shifted_places(test.labels, test.class_counts, ratio, direction)
        labels = test.labels[places]
        own = moved_posteriors(probabilities[places], target, source)
        told = np.bincount(labels, minlength=len(source)) / len(labels)
        priors = {"": target, "+adapted": estimated_prior(own, source), "+told": told}
        for name, prior in priors.items():
            predicted = moved_posteriors(own, source, prior).argmax(1)
            accuracy = float((predicted == labels).mean())
            found[f"{direction}-{ratio:g}{name}"] = {"accuracy": accuracy}
    return found


def _rows(place: int, found: dict[str, dict[str, float]]) -> pd.DataFrame:
    rows = [
        (place, canonical_json({}), protocol, metric, None, value)
        for protocol, metrics in found.items()
        for metric, value in metrics.items()
    ]
    table = pd.DataFrame(
        rows, columns=["point", "parameters", "protocol", "metric", "class", "value"]
    )
    return table.astype({"class": "Int64"})
