"""Softmax cross-entropy, plain and corrected for the class prior."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field
from torch import Tensor

from ltpipe.config.registry import loss
from ltpipe.losses.base import SoftmaxForm, SoftmaxLoss, checked_counts
from ltpipe.utils.errors import InputError


@loss("ce", paper="Bridle, NIPS 1989")
class CrossEntropyLoss(SoftmaxLoss):
    """Softmax cross-entropy; with class weights (C,) the mean divides by the batch's sum of w_y."""

    @property
    def form(self) -> SoftmaxForm:
        return SoftmaxForm()


@loss("balanced-softmax", paper="Ren et al., NeurIPS 2020")
class BalancedSoftmaxLoss(SoftmaxLoss):
    """Cross-entropy on ``z + log n``: the training prior enters in training and not at test time.

    Ren et al., "Balanced Meta-Softmax for Long-Tailed Visual Recognition", NeurIPS 2020, theorem 1.

    Raises:
        InputError: a class has no training image.
    """

    log_counts: Tensor

    def __init__(self, class_counts: Sequence[int] | Tensor, weight: Tensor | None = None) -> None:
        super().__init__(weight)
        log_counts = checked_counts(class_counts).log().float()
        self.register_buffer("log_counts", log_counts, persistent=False)

    @property
    def form(self) -> SoftmaxForm:
        return SoftmaxForm(prior=self.log_counts)


@loss("logit-adjustment", paper="Menon et al., ICLR 2021")
class LogitAdjustedLoss(SoftmaxLoss):
    """Cross-entropy on ``z + tau log p`` with the class prior p = n / N.

    At tau = 1 its gradient is balanced softmax's.

    Menon et al., "Long-Tail Learning via Logit Adjustment", ICLR 2021, eq. 10.

    Raises:
        InputError: a class has no training image; `tau` is negative.
    """

    adjustment: Tensor

    def __init__(
        self,
        class_counts: Sequence[int] | Tensor,
        tau: Annotated[float, Field(ge=0)] = 1.0,
        weight: Tensor | None = None,
    ) -> None:
        super().__init__(weight)
        if not tau >= 0:
            raise InputError(f"tau must be at least 0, not {tau:g}")
        counts = checked_counts(class_counts)
        adjustment = (tau * (counts / counts.sum()).log()).float()
        self.register_buffer("adjustment", adjustment, persistent=False)

    @property
    def form(self) -> SoftmaxForm:
        return SoftmaxForm(prior=self.adjustment)
