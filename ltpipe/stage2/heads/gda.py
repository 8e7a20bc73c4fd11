"""Gaussian discriminant analysis: class means and one shrunken covariance, in closed form.

Wang et al., "A Hard-to-Beat Baseline for Training-free CLIP-based Adaptation", ICLR 2024: features
of unit length, ``W_c = P mu_c``, ``b_c = -mu_c' P mu_c / 2`` (a uniform prior), and with class
texts ``scale x't_c + alpha (x'W_c + b_c)``. The released rule ``P = D pinv((N - 1) S + tr(S) I)``
is ``l inv((1 - l) S + l tr(S) / D I)`` with ``l = D / (N - 1 + D)``; here the factor before the
inverse is left out, so that the softmax is the posterior of the Gaussian model, and l may be
chosen.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from pydantic import field_validator

from ltpipe.config.base import Float
from ltpipe.config.methods import OneBackbone, different
from ltpipe.config.registry import method
from ltpipe.stage2.core.settings import Chosen

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ltpipe.artifacts.job import Job
    from ltpipe.features.store import FeatureStore
    from ltpipe.stage2.core.inference import Fitted, Samples


@method("gda", paper="Wang et al., ICLR 2024")
class GDA(Chosen):
    """Gaussian discriminant analysis: class means and one shrunken covariance, nothing trained.

    `shrinkage` l mixes the covariance S with a sphere of its size, ``(1 - l) S + l tr(S) / D I``;
    `auto` is the paper's ``D / (N - 1 + D)``. `covariance: pooled` is that of all samples about
    their class means, which frequent classes dominate; `class-mean` averages those of the classes
    with at least two samples. `alpha` weighs it beside the class texts of vision-language towers;
    0 leaves texts out.
    """

    swept = ("shrinkage", "alpha")

    kind: Literal["gda"]
    backbones: OneBackbone
    shrinkage: Literal["auto"] | Float | list[Float] = [  # noqa: RUF012
        0.01,
        0.03,
        0.1,
        0.3,
        0.6,
        0.9,
        0.99,
    ]
    covariance: Literal["pooled", "class-mean"] = "pooled"
    alpha: Float | list[Float] = 0.0

    @field_validator("shrinkage")
    @classmethod
    def _shares(cls, value: Any) -> Any:
        if (
            value != "auto"
            and not 0
            < min(different("shrinkage", value))
            <= max(different("shrinkage", value))
            <= 1
        ):
            raise ValueError("shrinkage must be above 0 and at most 1")
        return value

    @field_validator("alpha")
    @classmethod
    def _weights(cls, value: float | list[float]) -> float | list[float]:
        values = different("alpha", value)
        if min(values) < 0 or (len(values) > 1 and min(values) == 0):
            raise ValueError("alpha must be above 0, or 0 alone to leave class texts out")
        return value

    def check_backbone(self, role: str, backbone: Any) -> None:
        super().check_backbone(role, backbone)
        if self.alpha != 0 and backbone.system != "vision-language":
            raise ValueError("it has no class texts to weigh by alpha")


def run(job: Job) -> dict[str, Any]:
    """Compute the Gaussians, and choose shrinkage and weight by held-out samples."""
    from ltpipe.stage2.core.choosing import run_chosen

    return run_chosen(job, GDA, partial(_fit, job.device), logits)


def logits(fitted: Fitted[GDA], samples: Samples) -> Tensor:
    """Return the Gaussians' log-posteriors (N, C) but for a constant, texts added."""
    from ltpipe.stage2.core.batches import unit_rows
    from ltpipe.stage2.core.heads import linear_logits
    from ltpipe.stage2.core.texts import class_texts, text_logits

    given = samples["features"]
    gaussian = linear_logits(fitted.weights, unit_rows(given.features))
    if fitted.settings.alpha == 0:
        return gaussian
    text, scale = class_texts(given)
    return text_logits(given.features, text, scale) + fitted.weights["alpha"] * gaussian


def discriminants(means: Tensor, covariance: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Return weight (C, D) and bias (C,) of means (C, D) and a covariance (D, D), float64."""
    import torch

    from ltpipe.stage2.core.moments import shrunk

    root = torch.linalg.cholesky(shrunk(covariance, share))
    weight = torch.cholesky_solve(means.T, root).T
    return weight, -(weight * means).sum(1) / 2


def _fit(device: torch.device, settings: GDA, train: FeatureStore) -> dict[str, Tensor]:
    import torch

    from ltpipe.stage2.core.moments import class_moments

    classes, (samples, dimension) = len(train.class_names), train.features.shape
    balanced = settings.covariance == "class-mean"
    moments = class_moments(
        train.features, train.labels, classes, device, unit=True, balanced=balanced
    )
    several = int((moments.counts > 1).sum()) if balanced else samples - classes
    covariance = moments.scatter / max(several, 1)
    # From the middle of the means logits are small, which float32 holds best.
    centre = moments.means.mean(0)
    alphas = settings.alpha if isinstance(settings.alpha, list) else [settings.alpha]
    given = settings.shrinkage
    auto = dimension / (samples - 1 + dimension)
    shares = given if isinstance(given, list) else [auto if given == "auto" else given]
    found: dict[str, list[Tensor]] = {"weight": [], "bias": [], "alpha": []}
    for share in shares:
        weight, bias = discriminants(moments.means - centre, covariance, share)
        bias = bias - weight @ centre
        for alpha in alphas:
            found["weight"].append(weight.float())
            found["bias"].append(bias.float())
            found["alpha"].append(torch.tensor(alpha))
    return {name: torch.stack(values) for name, values in found.items()}
