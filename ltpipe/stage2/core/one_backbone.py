"""What the methods on one backbone's features have in common: features in, results out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic

import pandas as pd
from torch import Tensor

from ltpipe.artifacts.job import Job
from ltpipe.features.store import FeatureStore
from ltpipe.stage2.core.cascade import Filter
from ltpipe.stage2.core.inference import Logits, MoreRows, SettingsT, evaluate_points
from ltpipe.stage2.core.results import method_settings, open_stores


@dataclass(frozen=True)
class Features(Generic[SettingsT]):
    """One backbone's training and test features, and the settings of the method on them."""

    settings: SettingsT
    train: FeatureStore
    test: FeatureStore

    @property
    def classes(self) -> int:
        """The number of classes."""
        return len(self.train.class_names)


def open_features(job: Job, model: type[SettingsT]) -> Features[SettingsT]:
    """Open the stores of a method with the role `features`; views only where it draws them."""
    settings = method_settings(job, model, ["features"])
    skipped = () if settings.needs_views() else ("views",)
    train = open_stores(job, "train", skip=skipped)["features"]
    return Features(settings, train, open_stores(job, "test")["features"])


def finish(
    job: Job,
    features: Features[Any],
    logits: Logits,
    weights: dict[str, Tensor],
    *,
    more_rows: MoreRows | None = None,
    other_rows: Sequence[pd.DataFrame] = (),
    filters: Sequence[Filter] = (),
    **facts: Any,
) -> dict[str, Any]:
    """Evaluate a method with the role `features`; see `evaluate_points`."""
    return evaluate_points(
        job,
        features.settings,
        {"features": features.test},
        logits,
        weights,
        more_rows=more_rows,
        other_rows=other_rows,
        filters=filters,
        **facts,
    )
