"""Tau-normalisation: the trained classifier's rows divided by ``|w_c| ** tau``, without bias.

Kang et al., ICLR 2020, eq. 3. The released code chooses tau on the validation set of ImageNet-LT
and on the test set of iNaturalist; here it is never chosen on the test set.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import field_validator

from ltpipe.config.base import Float
from ltpipe.config.methods import MethodSettings, OneBackbone, exponents, points
from ltpipe.config.registry import method

if TYPE_CHECKING:
    from torch import Tensor

    from ltpipe.artifacts.job import Job
    from ltpipe.stage2.core.inference import Fitted, Samples


@method("tau-norm", paper="Kang et al., ICLR 2020")
class TauNorm(MethodSettings):
    """The stage-one classifier with rows divided by their norm to the power of tau.

    `select: validation` takes the tau of `tau` that is best on held-out samples, `select: none`
    shows them all.
    """

    stackable = False

    kind: Literal["tau-norm"]
    backbones: OneBackbone
    tau: Float | list[Float] = [round(0.1 * step, 1) for step in range(21)]  # noqa: RUF012
    select: Literal["validation", "none"] = "validation"

    _check_tau = field_validator("tau")(exponents)

    def points(self) -> list[dict[str, float]]:
        return [{}] if self.needs_validation() else points("tau", self.tau)

    def protocol(self) -> str:
        return "best_val" if self.needs_validation() else "last"

    def needs_validation(self) -> bool:
        return self.select == "validation"

    def reads_classifier(self, role: str) -> bool:
        return True


def run(job: Job) -> dict[str, Any]:
    """Evaluate every tau, or the one that is best on held-out samples."""
    import torch

    from ltpipe.stage2.core.heads import normalised
    from ltpipe.stage2.core.one_backbone import finish, open_features
    from ltpipe.stage2.core.results import classifier_of

    features = open_features(job, TauNorm)
    settings = features.settings
    weight, _ = classifier_of(features.train)
    taus = settings.tau if isinstance(settings.tau, list) else [settings.tau]
    facts: dict[str, Any] = {}
    if settings.needs_validation():
        taus = [_select(job, taus)]
        facts = {"tau": taus[0]}
    weights = torch.stack([normalised(weight, tau) for tau in taus])
    return finish(job, features, logits, {"weight": weights, "tau": torch.tensor(taus)}, **facts)


def logits(fitted: Fitted[TauNorm], samples: Samples) -> Tensor:
    """Return the products (N, C) with the normalised rows."""
    return samples["features"].features @ fitted.weights["weight"].T


def _select(job: Job, taus: Sequence[float]) -> float:
    """Return the tau of the best mean class accuracy on held-out samples.

    Few samples make many equals; of these the one in the middle is taken.
    """
    import tempfile
    from pathlib import Path

    import numpy as np
    import torch

    from ltpipe.features.store import FeatureStore
    from ltpipe.stage2.core.heads import normalised
    from ltpipe.stage2.core.held_out import held_out_files
    from ltpipe.stage2.core.results import classifier_of
    from ltpipe.utils.errors import InputError
    from ltpipe.utils.progress import say

    with tempfile.TemporaryDirectory(dir=job.output) as scratch:
        train_file, val_file = held_out_files(job, "features", Path(scratch))
        held_out = FeatureStore.open(val_file, skip=("views",))
        train = FeatureStore.open(train_file, skip=("views",))
    if not len(held_out.labels):
        raise InputError(
            f"{held_out.path}: has no samples to choose tau by; give the data set a validation "
            "part, or set select: none"
        )
    weight, _ = classifier_of(train)
    inputs = torch.from_numpy(held_out.features)
    counts = np.bincount(held_out.labels)
    accuracies = []
    for tau in taus:
        predicted = (inputs @ normalised(weight, tau).T).argmax(1).numpy()
        hits = np.bincount(held_out.labels, weights=predicted == held_out.labels)
        accuracies.append(float((hits[counts > 0] / counts[counts > 0]).mean()))
    equals = np.flatnonzero(np.isclose(accuracies, max(accuracies)))
    best = int(equals[len(equals) // 2])
    say(f"tau {taus[best]:g}: mean class accuracy {accuracies[best]:.1%} on held-out samples")
    return taus[best]
