"""Batches and recipe of the methods that train something on one backbone's features."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ltpipe.features.store import FeatureStore
from ltpipe.stage2.core.batches import (
    Draws,
    FeatureBatches,
    HasRows,
    Rows,
    drawn_views,
    joined_views,
)
from ltpipe.stage2.core.fit import Recipe
from ltpipe.stage2.core.heads import linear_scores
from ltpipe.stage2.core.scoring import Fitted, Samples
from ltpipe.utils.errors import InputError


def training_batches(
    stores: Sequence[FeatureStore],
    settings: Any,
    seeds: Sequence[int],
    device: torch.device,
    rows: Callable[[Tensor], HasRows] = Rows,
) -> FeatureBatches:
    """Return the batches of S stores of the same samples, one a seed.

    Args:
        settings: a `Retrained` method's.
        rows: how rows of the joined tables are handed out.

    Raises:
        InputError: views are asked for and not cached, or stores hold different labels.
    """
    tables = [drawn_views(store, settings.views).to(device) for store in stores]
    for store in stores[1:]:
        if not np.array_equal(store.labels, stores[0].labels):
            raise InputError(f"{store.path} and {stores[0].path} hold different samples")
    draws = Draws(
        torch.from_numpy(stores[0].labels),
        len(tables[0]),
        list(seeds),
        classes=len(stores[0].class_names),
        sampler=settings.sampler,
        per_class=settings.per_class,
    )
    return FeatureBatches(rows(joined_views(tables)), draws, settings.batch_size, device)


def scores(fitted: Fitted, samples: Samples) -> Tensor:
    """Return what a linear classifier, with scales or without, gives features."""
    return linear_scores(fitted.weights, samples["features"].features)


def recipe_of(
    settings: Any, seeds: int, device: torch.device, models: int = 1, **factors: float
) -> Recipe:
    """Return the recipe for S seeds times the points of a `Retrained` method.

    `models` is how many models each point consists of, `factors` multiply the learning rate of
    the parameters that they name.
    """
    rate: float | Tensor = settings.learning_rate
    if isinstance(settings.learning_rate, list):
        rates = torch.tensor(settings.learning_rate, device=device)
        rate = rates.repeat_interleave(models).repeat(seeds)
    return Recipe(
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        learning_rate=rate,
        schedule=settings.schedule,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        factors=factors,
    )
