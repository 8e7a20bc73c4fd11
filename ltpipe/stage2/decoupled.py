"""What the decoupled classifiers have in common: one backbone's features in, scores out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from ltpipe.features.store import FeatureStore
from ltpipe.job import Job
from ltpipe.stage2.results import manifest_facts, method_settings, open_stores, write_results


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
    cached = getattr(settings, "views", "plain") == "cached"
    train = open_stores(job, "train", skip=() if cached else ("views",))["features"]
    return Features(settings, train, open_stores(job, "test")["features"])


def finish(
    job: Job,
    features: Features,
    logits: Callable[[int], Tensor],
    weights: dict[str, Tensor],
    *,
    more_rows: Sequence[pd.DataFrame] = (),
    **facts: Any,
) -> dict[str, Any]:
    """Evaluate each point's test logits (N, C), write the results, return the manifest's facts.

    Args:
        logits: called with the point's place.
        weights: tensors with the points along the first axis.
        more_rows: further rows of metrics, under their own protocol tags.
        facts: what else the manifest says.
    """
    points, protocol = features.settings.points(), features.settings.protocol()
    scores = (torch.softmax(logits(place), dim=1).cpu().numpy() for place in range(len(points)))
    write_results(
        job,
        scores,
        points=points,
        protocol=protocol,
        test=features.test,
        weights=weights,
        more_rows=more_rows,
    )
    return {**manifest_facts(protocol, points), **facts}
