"""Softmax cross-entropy, plain and corrected for the class prior."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F

from ltpipe.losses.base import Loss, at_least_float32, checked_counts


class CrossEntropyLoss(Loss):
    """Softmax cross-entropy; with class weights (C,) the mean divides by the batch's sum of w_y."""

    weight: Tensor | None

    def __init__(self, weight: Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("weight", weight, persistent=False)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        logits = at_least_float32(logits)
        weight = None if self.weight is None else self.weight.to(logits.dtype)
        return F.cross_entropy(logits, target, weight)


class BalancedSoftmaxLoss(Loss):
    """Cross-entropy on ``z + log n``: the training prior enters in training and not at test time.

    Ren et al., "Balanced Meta-Softmax for Long-Tailed Visual Recognition", NeurIPS 2020, theorem 1.

    Raises:
        InputError: a class has no training image.
    """

    log_counts: Tensor

    def __init__(self, class_counts: Sequence[int] | Tensor) -> None:
        super().__init__()
        log_counts = checked_counts(class_counts).log().float()
        self.register_buffer("log_counts", log_counts, persistent=False)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(at_least_float32(logits) + self.log_counts, target)
