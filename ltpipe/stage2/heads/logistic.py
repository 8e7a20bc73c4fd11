"""Logistic regression by scikit-learn's solver: a plain yardstick.

L2-regularised, on features standardised by the training set's means and deviations, as scikit-learn
users fit it; solved by L-BFGS in float64.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator

from ltpipe.config.base import Float
from ltpipe.config.methods import OneBackbone, different
from ltpipe.config.registry import method
from ltpipe.stage2.core.settings import Chosen

if TYPE_CHECKING:
    from torch import Tensor

    from ltpipe.artifacts.job import Job
    from ltpipe.features.store import FeatureStore
    from ltpipe.stage2.core.inference import Fitted, Samples


@method("logistic", paper="scikit-learn")
class Logistic(Chosen):
    """Logistic regression by scikit-learn's solver on standardised features.

    `strength` is its C, the inverse of the penalty's weight. `classes: balanced` weighs each sample
    by the inverse of its class's size.
    """

    swept = ("strength",)

    kind: Literal["logistic"]
    backbones: OneBackbone
    strength: Float | list[Float] = [1e-4, 1e-3, 1e-2]  # noqa: RUF012
    classes: Literal["plain", "balanced"] = "plain"
    iterations: int = Field(default=200, ge=1)

    @field_validator("strength")
    @classmethod
    def _above_zero(cls, value: float | list[float]) -> float | list[float]:
        if min(different("strength", value)) <= 0:
            raise ValueError("strength must be greater than 0")
        return value


def run(job: Job) -> dict[str, Any]:
    """Fit the regression, its strength chosen by held-out samples."""
    from ltpipe.stage2.core.choosing import run_chosen

    return run_chosen(job, Logistic, _fit, logits)


def logits(fitted: Fitted[Logistic], samples: Samples) -> Tensor:
    """Return the logits (N, C)."""
    from ltpipe.stage2.core.heads import linear_logits

    return linear_logits(fitted.weights, samples["features"].features)


def _fit(settings: Logistic, train: FeatureStore) -> dict[str, Tensor]:
    import warnings

    import numpy as np
    import torch
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    from ltpipe.stage2.core.choosing import stacked

    classes = len(train.class_names)
    mean = train.features.mean(0, dtype=np.float64)
    deviation = train.features.std(0, dtype=np.float64)
    deviation[deviation == 0] = 1
    rows = (train.features - mean) / deviation
    grid = settings.strength
    found = []
    for strength in grid if isinstance(grid, list) else [grid]:
        model = LogisticRegression(
            C=strength,
            class_weight="balanced" if settings.classes == "balanced" else None,
            max_iter=settings.iterations,
        )
        with warnings.catch_warnings():
            # The number of iterations is a setting.
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(rows, train.labels)
        # Two classes are one row, the second's; a class without samples has none.
        coefficients, bias = np.atleast_2d(model.coef_), np.atleast_1d(model.intercept_)
        if len(model.classes_) == 2:
            coefficients = np.vstack([-coefficients, coefficients]) / 2
            bias = np.concatenate([-bias, bias]) / 2
        weight, offset = np.zeros((classes, rows.shape[1])), np.full(classes, -1e4)
        weight[model.classes_] = coefficients / deviation
        offset[model.classes_] = bias - weight[model.classes_] @ mean
        found.append(
            {"weight": torch.from_numpy(weight).float(), "bias": torch.from_numpy(offset).float()}
        )
    return stacked(found)
