"""Tau-normalisation: the trained classifier's rows divided by ``|w_c| ** tau``, without bias.

Kang et al., ICLR 2020, eq. 3. The released code chooses tau on the validation set of ImageNet-LT
and on the test set of iNaturalist; here it is never chosen on the test set.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import field_validator

from ltpipe.config.base import Float
from ltpipe.config.methods import exponents
from ltpipe.config.registry import method
from ltpipe.stage2.core.settings import Chosen, OnClassifier

if TYPE_CHECKING:
    from torch import Tensor

    from ltpipe.artifacts.job import Job
    from ltpipe.features.store import FeatureStore
    from ltpipe.stage2.core.inference import Fitted, Samples


@method("tau-norm", paper="Kang et al., ICLR 2020")
class TauNorm(Chosen, OnClassifier):
    """The classifier with rows divided by their norm to the power of tau.

    `select: validation` takes the tau of `tau` that is best on held-out samples, `select: none`
    shows them all.
    """

    stackable = False
    swept = ("tau",)

    kind: Literal["tau-norm"]
    tau: Float | list[Float] = [round(0.1 * step, 1) for step in range(21)]  # noqa: RUF012

    _check_tau = field_validator("tau")(exponents)


def run(job: Job) -> dict[str, Any]:
    """Evaluate every tau, or the one that is best on held-out samples."""
    import torch

    from ltpipe.stage2.core.base_classifier import base_classifier
    from ltpipe.stage2.core.choosing import run_chosen
    from ltpipe.stage2.core.heads import normalised

    def fit(settings: TauNorm, train: FeatureStore) -> dict[str, Tensor]:
        weight = base_classifier(train, settings.initial, job.seed, job.device)["weight"]
        taus = settings.tau if isinstance(settings.tau, list) else [settings.tau]
        weights = torch.stack([normalised(weight, tau) for tau in taus])
        return {"weight": weights, "tau": torch.tensor(taus)}

    return run_chosen(job, TauNorm, fit, logits)


def logits(fitted: Fitted[TauNorm], samples: Samples) -> Tensor:
    """Return the products (N, C) with the normalised rows."""
    return samples["features"].features @ fitted.weights["weight"].T
