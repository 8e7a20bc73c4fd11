"""Losses that weigh classes or samples: class-balanced and focal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from ltpipe.config.registry import loss
from ltpipe.losses.base import Loss, SoftmaxForm, SoftmaxLoss, at_least_float32
from ltpipe.losses.weights import effective_number_weights
from ltpipe.utils.errors import InputError


@loss("class-balanced", paper="Cui et al., CVPR 2019")
class ClassBalancedLoss(SoftmaxLoss):
    """Cross-entropy weighted by the inverse effective number of samples at all times.

    Cui et al., "Class-Balanced Loss Based on Effective Number of Samples", CVPR 2019, section 4.

    Raises:
        InputError: a class has no training image; `beta` is outside [0, 1).
    """

    def __init__(
        self,
        class_counts: Sequence[int] | Tensor,
        beta: Annotated[float, Field(ge=0, lt=1)] = 0.9999,
    ) -> None:
        super().__init__(effective_number_weights(class_counts, beta))

    @property
    def form(self) -> SoftmaxForm:
        return SoftmaxForm()


@loss("class-balanced-binary", paper="Alshammari et al., CVPR 2022")
class BinarySoftmaxLoss(Loss):
    """``v_y / C [-log p_y - sum_{j != y} log(1 - p_j)]`` with softmax probabilities p.

    v are the inverse effective numbers, summing to C; the mean divides by the batch, not by their
    sum. What weight balancing's released code trains its classifier with: Alshammari et al.,
    "Long-Tailed Recognition via Weight Balancing", CVPR 2022.

    Raises:
        InputError: a class has no training image; `beta` is outside [0, 1).
    """

    factors: Tensor

    def __init__(
        self,
        class_counts: Sequence[int] | Tensor,
        beta: Annotated[float, Field(ge=0, lt=1)] = 0.9999,
    ) -> None:
        super().__init__()
        factors = effective_number_weights(class_counts, beta)
        self.register_buffer("factors", factors, persistent=False)

    def per_sample(self, logits: Tensor, target: Tensor) -> Tensor:
        log_probabilities = torch.log_softmax(logits, dim=1)
        # A probability that rounds to 1 must not cost infinitely much.
        others = torch.log1p(-log_probabilities.exp().clamp(max=1 - 1e-6))
        places = target.unsqueeze(1)
        right = (log_probabilities - others).gather(1, places).squeeze(1)
        return -self.factors[target] / logits.shape[1] * (right + others.sum(1))


@loss("focal", paper="Lin et al., ICCV 2017")
class FocalLoss(Loss):
    """Softmax focal loss ``(1 - p_y) ** gamma * CE``.

    p is the plain softmax probability, also with class weights, and the gradient flows through
    the modulating factor. `ldam_compat` repeats what LDAM-DRW's code does with class weights:
    ``p = exp(-w_y CE)``, and the sum of ``w_y (1 - p) ** gamma CE`` divided by the number of
    samples instead of the weights' sum.

    Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017, eq. 4, with softmax in the
    place of the sigmoid.

    Raises:
        InputError: `gamma` is negative.
    """

    def __init__(
        self,
        gamma: Annotated[float, Field(ge=0)] = 1.0,
        weight: Tensor | None = None,
        ldam_compat: bool = False,
    ) -> None:
        super().__init__(weight)
        if not gamma >= 0:
            raise InputError(f"gamma must be at least 0, not {gamma:g}")
        self.gamma = gamma
        self.ldam_compat = ldam_compat

    def per_sample(self, logits: Tensor, target: Tensor) -> Tensor:
        return self._modulated(F.cross_entropy(logits, target, reduction="none"))

    def sums(self, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        weights = self.class_weights()
        if not self.ldam_compat or weights is None:
            return super().sums(logits, target)
        losses = F.cross_entropy(at_least_float32(logits), target, reduction="none")
        weighted = weights.to(losses.dtype)[target] * losses
        return self._modulated(weighted).sum(), losses.new_full((), len(losses))

    def _modulated(self, losses: Tensor) -> Tensor:
        # Below gamma = 1 the power has an infinite slope at 0, and 0 * inf is not a gradient.
        miss = (-torch.expm1(-losses)).clamp_min(torch.finfo(losses.dtype).tiny)
        return miss**self.gamma * losses
