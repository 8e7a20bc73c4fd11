"""Label smoothing: the same for all classes, or more for the frequent ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from ltpipe.config.registry import loss
from ltpipe.losses.base import Loss, checked_counts
from ltpipe.utils.errors import InputError, nearest

SHAPES = ("concave", "linear", "convex")


@loss("label-smoothing", paper="Szegedy et al., CVPR 2016")
class LabelSmoothingLoss(Loss):
    """``(1 - e) CE + e mean_c(-log p_c)``: the target keeps 1 - e + e / C.

    Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", CVPR 2016,
    section 7.

    Raises:
        InputError: `smoothing` is outside [0, 1).
    """

    def __init__(
        self, smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.1, weight: Tensor | None = None
    ) -> None:
        super().__init__(weight)
        _check_share(smoothing=smoothing)
        self.smoothing = smoothing

    def per_sample(self, logits: Tensor, target: Tensor) -> Tensor:
        return _smoothed(logits, target, self.smoothing)


@loss("label-aware-smoothing", paper="MiSLAS: Zhong et al., CVPR 2021")
class LabelAwareSmoothingLoss(Loss):
    """Label smoothing by ``e_y``, which falls from `head` at the largest class to `tail`.

    With the share ``t = (n_c - n_min) / (n_max - n_min)`` a class's e is ``tail + (head - tail)
    f(t)``: f is ``sin(pi t / 2)`` (concave), t (linear) or ``1 - cos(pi t / 2)`` (convex). Where
    all classes are equal, t is 1.

    Zhong et al., "Improving Calibration for Long-Tailed Recognition" (MiSLAS), CVPR 2021,
    eqs. 5 to 7.

    Raises:
        InputError: a class has no training image; `head` or `tail` is outside [0, 1), or `tail`
            exceeds `head`; unknown `shape`.
    """

    at_most = (("tail", "head"),)

    smoothing: Tensor

    def __init__(
        self,
        class_counts: Sequence[int] | Tensor,
        head: Annotated[float, Field(ge=0, lt=1)] = 0.3,
        tail: Annotated[float, Field(ge=0, lt=1)] = 0.0,
        shape: Literal["concave", "linear", "convex"] = "concave",
        weight: Tensor | None = None,
    ) -> None:
        super().__init__(weight)
        _check_share(head=head, tail=tail)
        if tail > head:
            raise InputError(f"tail {tail:g} must not exceed head {head:g}")
        counts = checked_counts(class_counts)
        spread = counts.max() - counts.min()
        share = (counts - counts.min()) / spread if spread else torch.ones_like(counts)
        if shape == "concave":
            rise = torch.sin(math.pi / 2 * share)
        elif shape == "linear":
            rise = share
        elif shape == "convex":
            rise = 1 - torch.cos(math.pi / 2 * share)
        else:
            raise InputError(
                f"unknown shape {shape!r}{nearest(shape, SHAPES)}; known: {', '.join(SHAPES)}"
            )
        smoothing = (tail + (head - tail) * rise).float()
        self.register_buffer("smoothing", smoothing, persistent=False)

    def per_sample(self, logits: Tensor, target: Tensor) -> Tensor:
        return _smoothed(logits, target, self.smoothing[target])


def _smoothed(logits: Tensor, target: Tensor, smoothing: Tensor | float) -> Tensor:
    log_probabilities = torch.log_softmax(logits, dim=1)
    hit = -log_probabilities.gather(1, target.unsqueeze(1)).squeeze(1)
    return (1 - smoothing) * hit - smoothing * log_probabilities.mean(1)


def _check_share(**settings: float) -> None:
    for name, value in settings.items():
        if not 0 <= value < 1:
            raise InputError(f"{name} must be at least 0 and below 1, not {value:g}")
