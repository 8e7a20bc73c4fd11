"""FFN's ablation (Fig. 4, eq. 11): mix the two stage-one classifiers' outputs, train nothing.

The paper does not say whether probabilities or logits are mixed; both can be asked for. Logits of
the KPS branch are its scaled cosines.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ltpipe.config.methods import LogitFusion
from ltpipe.errors import InputError
from ltpipe.job import Job
from ltpipe.stage2.results import (
    class_logits,
    manifest_facts,
    method_settings,
    open_stores,
    write_results,
)


def fuse(ce: Tensor, kps: Tensor, w1: float, space: str) -> Tensor:
    """Return class probabilities (N, C) from two branches' logits (N, C); w1 weighs `kps`."""
    if space == "probability":
        return w1 * torch.softmax(kps, dim=1) + (1 - w1) * torch.softmax(ce, dim=1)
    return torch.softmax(w1 * kps + (1 - w1) * ce, dim=1)


def run(job: Job) -> dict[str, Any]:
    """Evaluate the mixtures at every coefficient."""
    settings = method_settings(job, LogitFusion, ["ce", "kps"])
    test = open_stores(job, "test")
    logits = {}
    for role, store in test.items():
        cached = class_logits(store)
        if cached is None:
            raise InputError(f"{store.path}: has no logits to fuse")
        logits[role] = torch.from_numpy(cached)
    points = settings.points()

    def scores() -> Iterator[np.ndarray]:
        for point in points:
            yield fuse(logits["ce"], logits["kps"], point["w1"], settings.space).numpy()

    write_results(
        job,
        scores(),
        points=points,
        protocol=settings.protocol(),
        test=test["ce"],
        weights={"w1": torch.tensor([point["w1"] for point in points])},
    )
    return manifest_facts(settings.protocol(), points)
