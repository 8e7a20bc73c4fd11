"""What any method is given to score samples: itself at one point, and what backbones make of them.

Each method's module has ``scores(fitted, samples) -> (N, C)``, whose softmax are the probabilities.
It is what the method is evaluated by, and what an exported bundle predicts with.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ltpipe.artifacts.job import Job
from ltpipe.features.store import FeatureStore
from ltpipe.stage2.core.results import manifest_facts, write_results


@dataclass(frozen=True)
class Embedded:
    """What one backbone makes of N samples, and what is known of its outputs.

    `features` (N, D) float32; `logits` (N, C') of the backbone's own classifier where it has one;
    `text` (C, D), the class texts of vision-language towers; `attributes` such as `logit_scale` and
    `subclasses`; `path` names where it is from, for messages.
    """

    features: Tensor
    logits: Tensor | None = None
    text: Tensor | None = None
    attributes: Mapping[str, Any] = field(default_factory=dict)
    path: str = ""

    @classmethod
    def of(cls, store: FeatureStore, device: torch.device) -> Embedded:
        """Return a store's samples on a device."""

        def tensor(values: Any) -> Tensor | None:
            return None if values is None else torch.from_numpy(values).to(device)

        return cls(
            torch.from_numpy(store.features).to(device),
            tensor(store.logits),
            tensor(store.text),
            store.attributes,
            str(store.path),
        )


Samples = Mapping[str, Embedded]


@dataclass(frozen=True)
class Filter:
    """A filter of a cascade: its flow, and the log-likelihood from which on it takes a sample."""

    flow: Any
    threshold: float


@dataclass(frozen=True)
class Fitted:
    """A method at one point of its sweep.

    `weights` are those of models.safetensors without the axis of points, `point` the swept
    parameters, `facts` what the method's manifest says beside its spec, `filters` the cascade that
    a method is given.
    """

    settings: Any
    weights: dict[str, Tensor]
    point: Mapping[str, float]
    class_counts: Sequence[int]
    facts: Mapping[str, Any] = field(default_factory=dict)
    filters: Sequence[Filter] = ()


Scores = Callable[[Fitted, Samples], Tensor]


def finish_scores(
    job: Job,
    settings: Any,
    test: Mapping[str, FeatureStore],
    scores: Scores,
    weights: Mapping[str, Tensor],
    *,
    more_rows: Sequence[pd.DataFrame] = (),
    **facts: Any,
) -> dict[str, Any]:
    """Score the test samples at each point, write the results, return the manifest's facts.

    Args:
        test: the test stores by role, of the same samples.
        scores: the method's own, called once a point.
        weights: tensors with the points along the first axis.
        more_rows: further rows of metrics, under their own protocol tags.
        facts: what else the manifest says.
    """
    points, protocol = settings.points(), settings.protocol()
    samples = {role: Embedded.of(store, job.device) for role, store in test.items()}
    first = next(iter(test.values()))

    def probabilities(place: int) -> np.ndarray:
        one = {name: value[place].to(job.device) for name, value in weights.items()}
        fitted = Fitted(settings, one, points[place], first.class_counts, facts)
        return torch.softmax(scores(fitted, samples), dim=1).cpu().numpy()

    write_results(
        job,
        map(probabilities, range(len(points))),
        points=points,
        protocol=protocol,
        test=first,
        weights=weights,
        more_rows=more_rows,
    )
    return {**manifest_facts(protocol, points), **facts}
