"""Batches and recipe of the methods that train something on one backbone's features."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from ltpipe.features.store import FeatureStore
from ltpipe.stage2.core.batches import (
    Draws,
    FeatureBatches,
    HasRows,
    Rows,
    Sampling,
    drawn_views,
)
from ltpipe.stage2.core.fit import Recipe
from ltpipe.stage2.core.settings import Chosen


class RecipeSettings(Protocol):
    """Settings of a method that hold the recipe of a fit."""

    @property
    def epochs(self) -> int: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def learning_rate(self) -> float | list[float]: ...
    @property
    def schedule(self) -> str: ...
    @property
    def momentum(self) -> float: ...
    @property
    def weight_decay(self) -> float | list[float]: ...


class SamplingSettings(Protocol):
    """Settings of a method that say what its epochs draw."""

    @property
    def views(self) -> str: ...
    @property
    def sampler(self) -> str: ...
    @property
    def per_class(self) -> int: ...


def recipe_of(settings: RecipeSettings, **factors: float) -> Recipe:
    """Return the recipe in a method's settings, of all points of its grid where it has one.

    `factors` multiply the learning rate of the parameters that they name.
    """
    rate: Any = settings.learning_rate
    decay: Any = settings.weight_decay
    if isinstance(settings, Chosen):
        grid = settings.grid()
        rate = [point.get("learning_rate", rate) for point in grid]
        decay = [point.get("weight_decay", decay) for point in grid]
        if grid == [{}]:
            rate, decay = rate[0], decay[0]
    return Recipe(
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        learning_rate=tuple(rate) if isinstance(rate, list) else rate,
        schedule=settings.schedule,
        momentum=settings.momentum,
        weight_decay=tuple(decay) if isinstance(decay, list) else decay,
        factors=factors,
    )


def sampling_of(settings: SamplingSettings) -> Sampling:
    """Return what a method's settings say that epochs draw."""
    return Sampling(settings.views, settings.sampler, settings.per_class)


def training_batches(
    store: FeatureStore,
    sampling: Sampling,
    batch_size: int,
    seed: int,
    device: torch.device,
    rows: Callable[[Tensor], HasRows] = Rows,
) -> FeatureBatches:
    """Return the batches of a training store.

    Args:
        rows: how rows of the table of views (V N, D) are handed out.

    Raises:
        InputError: views are asked for and not cached.
    """
    views = drawn_views(store, sampling.views).to(device)
    draws = Draws(
        torch.from_numpy(store.labels),
        len(views),
        seed,
        classes=len(store.class_names),
        sampler=sampling.sampler,
        per_class=sampling.per_class,
    )
    return FeatureBatches(rows(views.flatten(0, 1)), draws, batch_size, device)
