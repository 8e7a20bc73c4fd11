"""A cosine classifier on a vector of several parts: the sum of the parts' cosines."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ltpipe.stage2.core.fit import Parameters
from ltpipe.stage2.core.heads import CosineModel
from ltpipe.stage2.core.logit_gradients import LogitGradient


class CosinePartsModel:
    """Logits ``sum_p squash(x_p) . W_cp / |W_cp|`` from one weight (M, C, E) of all parts.

    A part x is squashed to ``x / (1 + |x|)``: Liu et al., "Large-Scale Long-Tailed Recognition in
    an Open World", CVPR 2019, eq. 6.
    """

    def __init__(self, gradient: LogitGradient, sizes: Sequence[int]) -> None:
        self.gradient = gradient
        self.sizes = list(sizes)

    def gradients(self, parameters: Parameters, inputs: Tensor, target: Tensor) -> Parameters:
        weights = parameters["weight"].split(self.sizes, 2)
        parts = [squash(part) for part in inputs.split(self.sizes, 2)]
        groups, classes = len(inputs), weights[0].shape[1]
        logits = torch.stack(
            [
                torch.bmm(part, F.normalize(weight, dim=2).reshape(groups, -1, size).mT)
                for part, weight, size in zip(parts, weights, self.sizes, strict=True)
            ]
        ).sum(0)
        by_logits = self.gradient(logits.unflatten(2, (-1, classes)), target)
        # Each part's gradient is that of a classifier of its own, given the joint logits.
        gradients = [
            CosineModel(lambda _logits, _target: by_logits).gradients(
                {"weight": weight.contiguous()}, part, target
            )["weight"]
            for part, weight in zip(parts, weights, strict=True)
        ]
        return {"weight": torch.cat(gradients, 2)}


def squash(values: Tensor) -> Tensor:
    """Return ``x / (1 + |x|)`` along the last axis."""
    return values / (1 + torch.linalg.vector_norm(values, dim=-1, keepdim=True))


def cosine_part_logits(weight: Tensor, inputs: Tensor, sizes: Sequence[int]) -> Tensor:
    """Return one classifier's logits (m, C) of inputs (m, E), before any scale."""
    parts = zip(weight.split(list(sizes), 1), inputs.split(list(sizes), 1), strict=True)
    each = [squash(part) @ F.normalize(w, dim=1).T for w, part in parts]
    return torch.stack(each).sum(0)
