"""What the decoupled classifiers have in common: one backbone's features in, scores out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from torch import Tensor

from ltpipe.artifacts.job import Job
from ltpipe.features.store import FeatureStore
from ltpipe.stage2.core.results import method_settings, open_stores
from ltpipe.stage2.core.scoring import Scores, finish_scores


@dataclass(frozen=True)
class Features:
    """One backbone's training and test features, and the settings of the method on them."""

    settings: Any
    train: FeatureStore
    test: FeatureStore

    @property
    def classes(self) -> int:
        """The number of classes."""
        return len(self.train.class_names)


def open_features(job: Job, model: type[Any]) -> Features:
    """Open the stores of a method with the role `features`; views only where it draws them."""
    settings = method_settings(job, model, ["features"])
    skipped = () if settings.needs_views() else ("views",)
    train = open_stores(job, "train", skip=skipped)["features"]
    return Features(settings, train, open_stores(job, "test")["features"])


def finish(
    job: Job,
    features: Features,
    scores: Scores,
    weights: dict[str, Tensor],
    *,
    more_rows: Sequence[pd.DataFrame] = (),
    **facts: Any,
) -> dict[str, Any]:
    """Score the test samples at each point, write the results, return the manifest's facts.

    Args:
        scores: the method's own, called once a point.
        weights: tensors with the points along the first axis.
        more_rows: further rows of metrics, under their own protocol tags.
        facts: what else the manifest says.
    """
    stores = {"features": features.test}
    return finish_scores(
        job, features.settings, stores, scores, weights, more_rows=more_rows, **facts
    )
