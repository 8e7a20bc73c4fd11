"""What methods predict from: themselves at one sweep point, and what backbones make of samples.

Each method's module has ``logits(fitted, samples) -> (N, C)``, whose softmax are the probabilities:
logits, scaled cosines or log-probabilities, as it says. It is what the method is evaluated by, and
what an exported bundle predicts with.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ltpipe.artifacts.job import Job
from ltpipe.config.methods import MethodSettings
from ltpipe.features.store import FeatureStore
from ltpipe.stage2.core.cascade import Filter
from ltpipe.stage2.core.results import manifest_facts, write_results

# So many samples are predicted at a time: what a method makes of them is wider than they are.
_ROWS = 1 << 14

SettingsT = TypeVar("SettingsT", bound=MethodSettings)


@dataclass(frozen=True)
class Embedded:
    """What one backbone makes of N samples, and what is known of its outputs.

    `features` (N, D) float32; `logits` (N, C') of the backbone's own classifier where it has one;
    `text` (C, D), the class texts of vision-language towers; `attributes` such as `logit_scale` and
    `subclasses`; `path` names where it is from, for messages; `labels` (N,), the true classes, for
    methods that are told of them (protocol `oracle`) and for no others.
    """

    features: Tensor
    logits: Tensor | None = None
    text: Tensor | None = None
    attributes: Mapping[str, Any] = field(default_factory=dict)
    path: str = ""
    labels: Tensor | None = None

    @classmethod
    def of(
        cls, store: FeatureStore, device: torch.device, *, with_labels: bool = False
    ) -> Embedded:
        """Return a store's samples on a device."""

        def tensor(values: Any) -> Tensor | None:
            return None if values is None else torch.from_numpy(values).to(device)

        return cls(
            torch.from_numpy(store.features).to(device),
            tensor(store.logits),
            tensor(store.text),
            store.attributes,
            str(store.path),
            tensor(store.labels) if with_labels else None,
        )

    def rows(self, part: slice) -> Embedded:
        """Return some of the samples."""

        def of(values: Tensor | None) -> Tensor | None:
            return None if values is None else values[part]

        return replace(
            self, features=self.features[part], logits=of(self.logits), labels=of(self.labels)
        )


Samples = Mapping[str, Embedded]


@dataclass(frozen=True)
class Fitted(Generic[SettingsT]):
    """A method at one point of its sweep.

    `weights` are those of models.safetensors without the axis of points, `point` the swept
    parameters, `facts` what the method's manifest says beside its spec, `filters` the cascade that
    a method is given.
    """

    settings: SettingsT
    weights: dict[str, Tensor]
    point: Mapping[str, float]
    class_counts: Sequence[int]
    facts: Mapping[str, Any] = field(default_factory=dict)
    filters: Sequence[Filter] = ()


Logits = Callable[[Fitted[Any], Samples], Tensor]
# Further rows of metrics.csv, of a sweep point's place and its probabilities (N, C).
MoreRows = Callable[[int, np.ndarray], pd.DataFrame]


def evaluate_points(
    job: Job,
    settings: MethodSettings,
    test: Mapping[str, FeatureStore],
    logits: Logits,
    weights: Mapping[str, Tensor],
    *,
    more_rows: MoreRows | None = None,
    other_rows: Sequence[pd.DataFrame] = (),
    filters: Sequence[Filter] = (),
    **facts: Any,
) -> dict[str, Any]:
    """Evaluate the test samples at each sweep point, write the results, return manifest facts.

    Args:
        test: the test stores by role, of the same samples.
        logits: the method's own, called for each point.
        weights: tensors with the points along the first axis.
        more_rows, other_rows: further rows of metrics.csv.
        filters: the cascade that the method is given.
        facts: what else the manifest says.
    """
    points, protocol = settings.points(), settings.protocol()
    told = "oracle" in protocol
    samples = {
        role: Embedded.of(store, job.device, with_labels=told) for role, store in test.items()
    }
    first = next(iter(test.values()))

    def probabilities(place: int) -> np.ndarray:
        one = {name: value[place].to(job.device) for name, value in weights.items()}
        fitted = Fitted(settings, one, points[place], first.class_counts, facts, filters)
        return predict(logits, fitted, samples)

    write_results(
        job,
        map(probabilities, range(len(points))),
        points=points,
        protocol=protocol,
        test=first,
        weights=weights,
        more_rows=more_rows,
        other_rows=other_rows,
    )
    return {**manifest_facts(protocol, points), **facts}


@torch.no_grad()
def predict(logits: Logits, fitted: Fitted[Any], samples: Samples) -> np.ndarray:
    """Return the probabilities (N, C) of samples, float32."""
    number = len(next(iter(samples.values())).features)
    parts = []
    for start in range(0, number, _ROWS):
        some = {role: one.rows(slice(start, start + _ROWS)) for role, one in samples.items()}
        parts.append(torch.softmax(logits(fitted, some), dim=1).cpu().numpy())
    return np.concatenate(parts)
