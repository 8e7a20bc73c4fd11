"""Head and tail classes of a store's samples, logits within them, and accuracy by them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ltpipe.config.base import canonical_json
from ltpipe.data.head_tail import tail_classes
from ltpipe.features.store import FeatureStore

GROUP_METRICS = ("head_group", "tail_group")


def sample_groups(store: FeatureStore, tail_share: float) -> tuple[Tensor, Tensor]:
    """Return which classes are tail, (C,) bool, and whether each sample's true class is, (N,)."""
    tail = torch.from_numpy(tail_classes(store.class_counts, tail_share))
    return tail, tail[torch.from_numpy(store.labels)]


def masked(logits: Tensor, tail: Tensor, to_tail: Tensor) -> Tensor:
    """Return logits (N, C) with -inf outside the group that each sample is sent to.

    Args:
        tail: (C,) bool, the tail classes.
        to_tail: (N,) bool, the samples sent to them.
    """
    return logits.masked_fill(tail != to_tail.unsqueeze(1), -torch.inf)


def group_rows(
    predicted: np.ndarray,
    store: FeatureStore,
    tail_share: float,
    protocol: str,
    place: int = 0,
    point: Mapping[str, float] = MappingProxyType({}),
) -> pd.DataFrame:
    """Return rows for metrics.csv: the accuracy of head and of tail samples at one point.

    Args:
        predicted: (N,) classes.
    """
    _, of_tail = sample_groups(store, tail_share)
    hits = predicted == store.labels
    values = [
        float(hits[of_group].mean()) if of_group.any() else np.nan
        for of_group in (~of_tail.numpy(), of_tail.numpy())
    ]
    return pd.DataFrame(
        {
            "point": place,
            "parameters": canonical_json(dict(point)),
            "protocol": protocol,
            "metric": GROUP_METRICS,
            "class": pd.array([None, None], dtype="Int64"),
            "value": values,
        }
    )
