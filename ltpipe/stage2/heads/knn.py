"""The nearest training features vote, by cosine: a plain yardstick.

Votes weigh ``exp(cos / T)`` as in Wu et al., "Unsupervised Feature Learning via Non-Parametric
Instance Discrimination", CVPR 2018, eq. 5, with T = 0.07.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator

from ltpipe.config.base import Float
from ltpipe.config.methods import OneBackbone
from ltpipe.config.registry import method
from ltpipe.stage2.core.settings import Chosen

if TYPE_CHECKING:
    from torch import Tensor

    from ltpipe.artifacts.job import Job
    from ltpipe.features.store import FeatureStore
    from ltpipe.stage2.core.inference import Fitted, Samples

# What a class without a vote has, beside votes that sum to one.
_FLOOR = 1e-6


@method("knn", paper="Wu et al., CVPR 2018")
class KNN(Chosen):
    """The nearest training features vote, by cosine.

    Of `neighbours`, those beyond the training samples stand for all. `votes: plain` counts samples
    alike; `balanced` divides each vote by the size of its class.
    """

    swept = ("neighbours",)

    kind: Literal["knn"]
    backbones: OneBackbone
    neighbours: int | list[int] = [1, 5, 20, 50, 200]  # noqa: RUF012
    temperature: Float = Field(default=0.07, gt=0)
    votes: Literal["plain", "balanced"] = "plain"

    @field_validator("neighbours")
    @classmethod
    def _numbers(cls, value: int | list[int]) -> int | list[int]:
        values = value if isinstance(value, list) else [value]
        if not values or min(values) < 1 or len(set(values)) != len(values):
            raise ValueError("neighbours must be different numbers from 1 up")
        return value


def run(job: Job) -> dict[str, Any]:
    """Keep the training features, and choose the number of neighbours by held-out samples."""
    import torch

    from ltpipe.stage2.core.batches import unit_rows
    from ltpipe.stage2.core.choosing import run_chosen

    def fit(settings: KNN, train: FeatureStore) -> dict[str, Tensor]:
        numbers = settings.neighbours
        numbers = numbers if isinstance(numbers, list) else [numbers]
        keys = unit_rows(torch.from_numpy(train.features).to(job.device))
        labels = torch.from_numpy(train.labels).to(job.device)
        counts = torch.bincount(labels, minlength=len(train.class_names))
        shares = torch.ones_like(labels) if settings.votes == "plain" else counts[labels]
        points = len(numbers)
        return {
            "keys": keys.expand(points, -1, -1),
            "labels": labels.expand(points, -1),
            "votes": shares.float().reciprocal().expand(points, -1),
            "neighbours": torch.tensor([min(number, len(keys)) for number in numbers]),
        }

    return run_chosen(job, KNN, fit, logits)


def logits(fitted: Fitted[KNN], samples: Samples) -> Tensor:
    """Return the logarithms (N, C) of the classes' shares of the votes."""
    import torch

    from ltpipe.stage2.core.batches import unit_rows

    weights, settings = fitted.weights, fitted.settings
    given = samples["features"].features
    near = int(weights["neighbours"])
    cosines, places = (unit_rows(given) @ weights["keys"].T).topk(near, dim=1)
    votes = ((cosines - 1) / settings.temperature).exp() * weights["votes"][places]
    shares = votes.new_zeros(len(given), len(fitted.class_counts))
    shares.scatter_add_(1, weights["labels"][places], votes)
    shares = shares / shares.sum(1, keepdim=True).clamp_min(torch.finfo(shares.dtype).tiny)
    return (shares + _FLOOR).log()
