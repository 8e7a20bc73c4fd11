"""What a bundle of method `calibrated` does beyond labels: other class priors, and sets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from ltpipe.stage2.core.conformal import members, thresholds
from ltpipe.stage2.core.label_shift import estimated_prior, moved_posteriors
from ltpipe.utils.errors import InputError

# The rule whose promise is for the mean over classes.
RULE = "balanced"


class Corrected:
    """The priors and held-out samples of a bundle of method `calibrated`.

    Args:
        description: what bundle.json says.
        tensors: the method's weights.

    Raises:
        InputError: the bundle is of another method.
    """

    def __init__(self, description: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        kind = description["method"]["kind"]
        if kind != "calibrated":
            raise InputError(
                f"this bundle is of method {kind}, without held-out samples to correct its "
                "probabilities by; export one of method calibrated"
            )
        values = {name: tensor.cpu().numpy() for name, tensor in tensors.items()}
        self.counts: list[int] = description["classes"]["counts"]
        self.source, self.target = values["source"], values["target"]
        self.held_out, self.labels = values["held_out"], values["held_out_labels"]

    def adapted(self, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return probabilities (N, C) under the samples' own prior, and that prior (C,).

        The prior is estimated from all N samples at once, each class kept alive by a hundredth of
        a sample.
        """
        own = moved_posteriors(probabilities, self.target, self.source)
        prior = estimated_prior(own, self.source, pseudo_count=0.01)
        return moved_posteriors(own, self.source, prior).astype(np.float32), prior

    def sets(self, probabilities: np.ndarray, coverage: float, rule: str = RULE) -> np.ndarray:
        """Return which classes are in each sample's set, bool (N, C), for unadapted probabilities.

        Raises:
            InputError: the coverage is no probability, or the rule is unknown.
        """
        limits = thresholds(self.held_out, self.labels, self.counts, coverage, rule)
        return members(probabilities, limits, self.counts, rule)
