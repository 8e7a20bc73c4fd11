"""Swept settings chosen on held-out samples; the chosen ones are then fitted on all samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

from ltpipe.artifacts.job import Job
from ltpipe.features.store import FeatureStore
from ltpipe.stage2.core.held_out import best_place, held_out_stores, mean_class_accuracy
from ltpipe.stage2.core.inference import Embedded, Fitted, Logits, predict
from ltpipe.stage2.core.one_backbone import Features, finish, open_features
from ltpipe.stage2.core.settings import Chosen
from ltpipe.utils.errors import InputError
from ltpipe.utils.progress import say

ChosenT = TypeVar("ChosenT", bound=Chosen)
# From settings and a training store to the weights of the points of their grid: (P, ...) each.
Fit = Callable[[ChosenT, FeatureStore], Mapping[str, Tensor]]


def run_chosen(job: Job, kind: type[ChosenT], fit: Fit[ChosenT], logits: Logits) -> dict[str, Any]:
    """Run a method on one backbone's features, whose swept settings may be chosen; see `finish`.

    Raises:
        InputError: there are no held-out samples to choose by.
    """
    features = open_features(job, kind)
    weights, facts = fit_chosen(job, features, fit, logits)
    return finish(job, features, logits, weights, **facts)


def fit_chosen(
    job: Job, features: Features[ChosenT], fit: Fit[ChosenT], logits: Logits
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the weights of the shown points, and what the manifest says of the choice.

    With `select: validation` all points of the grid are fitted without the held-out samples, and
    the one of the best mean class accuracy on them is fitted again on the training set.

    Raises:
        InputError: there are no held-out samples to choose by.
    """
    settings = features.settings
    if not settings.needs_validation():
        return dict(fit(settings, features.train)), {}
    train, held_out = chosen_by(job, settings)
    weights = fit(settings, train)
    grid = settings.grid()
    samples = {"features": Embedded.of(held_out, job.device)}
    accuracies = []
    for place, point in enumerate(grid):
        one = {name: value[place].to(job.device) for name, value in weights.items()}
        fitted = Fitted(settings, one, point, train.class_counts)
        found = predict(logits, fitted, samples).argmax(1)
        accuracies.append(mean_class_accuracy(found, held_out.labels))
    place = best_place(accuracies)
    shown = ", ".join(f"{name} {value:g}" for name, value in grid[place].items())
    say(
        f"{shown}: mean class accuracy {accuracies[place]:.1%} on {len(held_out.labels)} held-out "
        "samples"
    )
    weights = dict(fit(settings.at(grid[place]), features.train))
    facts = {
        "chosen": grid[place],
        "held_out": len(held_out.labels),
        "held_out_accuracy": round(accuracies[place], 6),
    }
    return weights, facts


def chosen_by(job: Job, settings: Chosen) -> tuple[FeatureStore, FeatureStore]:
    """Return the training and the held-out features that a choice is made by.

    Raises:
        InputError: there are no held-out samples.
    """
    stores = held_out_stores(job, "features", () if settings.needs_views() else ("views",))
    if not len(stores[1].labels):
        raise InputError(
            f"{stores[1].path}: has no samples to choose settings by; give the data set a "
            "validation part, or set select: none"
        )
    return stores


def stacked(points: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return the weights of P points, fitted one after another, along a new first axis."""
    return {name: torch.stack([one[name] for one in points]) for name in points[0]}
