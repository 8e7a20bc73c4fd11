"""Losses on cosines that ask rare classes for larger margins: LDAM and KPS."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from ltpipe.config.registry import loss
from ltpipe.losses.base import Loss, SoftmaxForm, SoftmaxLoss, checked_counts, subtract_at_target
from ltpipe.utils.errors import InputError


@loss("ldam", paper="Cao et al., NeurIPS 2019")
class LDAMLoss(SoftmaxLoss):
    """Label-distribution-aware margin loss on cosines (B, C).

    ``CE(s (z - m_y onehot(y)), y)`` with ``m_c`` proportional to ``n_c ** (-1/4)`` and scaled so
    that the largest is `max_margin`.

    Cao et al., "Learning Imbalanced Datasets with Label-Distribution-Aware Margin Loss",
    NeurIPS 2019, section 3.2.

    Raises:
        InputError: a class has no training image; the margin or the scale is not positive.
    """

    takes_cosines = True

    margins: Tensor

    def __init__(
        self,
        class_counts: Sequence[int] | Tensor,
        max_margin: Annotated[float, Field(gt=0)] = 0.5,
        scale: Annotated[float, Field(gt=0)] = 30.0,
        weight: Tensor | None = None,
    ) -> None:
        super().__init__(weight)
        _check_positive(max_margin=max_margin, scale=scale)
        margins = checked_counts(class_counts) ** -0.25
        margins *= max_margin / margins.max()
        self.scale = scale
        self.register_buffer("margins", margins.float(), persistent=False)

    @property
    def form(self) -> SoftmaxForm:
        return SoftmaxForm(scale=self.scale, margins=self.margins)


@loss("kps", paper="Li et al., TPAMI 2022")
class KPSLoss(Loss):
    """Key-point sensitive loss on cosines (B, C).

    ``CE(s (r z - m_y onehot(y)), y)`` with ``u_c = log(50 n_c / n_min)``, ``r_c = u_c / u_min``
    and ``m_c = max_margin (u_max + u_min - u_c) / u_max``: frequent classes are stretched, rare
    ones get the margin. The margin is a function of the class's own count; the authors' code
    reverses the list over the class index, which says the same only for classes that are sorted
    by count.

    From epoch `adjust_from` on (None: never) the gradient adjustment replaces s, for each sample,
    by ``s (r_max + r_min - r_y)`` limited to s ... 50.

    Li et al., "Key Point Sensitive Loss for Long-Tailed Visual Recognition", TPAMI 2022; the
    constants are those of its released code.

    Raises:
        InputError: a class has no training image; the margin or the scale is not positive.
    """

    takes_cosines = True

    stretch: Tensor
    margins: Tensor
    adjusted_scales: Tensor

    def __init__(
        self,
        class_counts: Sequence[int] | Tensor,
        max_margin: Annotated[float, Field(gt=0)] = 0.2,
        scale: Annotated[float, Field(gt=0)] = 15.0,
        adjust_from: Annotated[int | None, Field(ge=0)] = None,
        weight: Tensor | None = None,
    ) -> None:
        super().__init__(weight)
        _check_positive(max_margin=max_margin, scale=scale)
        counts = checked_counts(class_counts)
        sizes = torch.log(50 * counts / counts.min())
        smallest, largest = math.log(50), sizes.max()
        reversed_sizes = largest + smallest - sizes
        adjusted = (scale * reversed_sizes / smallest).clamp(scale, max(scale, 50.0))
        self.scale = scale
        self.adjust_from = adjust_from
        self.adjusting = adjust_from == 0
        self.register_buffer("stretch", (sizes / smallest).float(), persistent=False)
        margins = max_margin * reversed_sizes / largest
        self.register_buffer("margins", margins.float(), persistent=False)
        self.register_buffer("adjusted_scales", adjusted.float(), persistent=False)

    def on_epoch(self, epoch: int) -> None:
        self.adjusting = self.adjust_from is not None and epoch >= self.adjust_from

    def per_sample(self, logits: Tensor, target: Tensor) -> Tensor:
        stretched = self.stretch * logits
        stretched = subtract_at_target(stretched, self.margins[target], target)
        if self.adjusting:
            scaled = self.adjusted_scales[target].unsqueeze(1) * stretched
        else:
            scaled = self.scale * stretched
        return F.cross_entropy(scaled, target, reduction="none")

    def logits(self, outputs: Tensor) -> Tensor:
        return self.scale * outputs


def _check_positive(**settings: float) -> None:
    for name, value in settings.items():
        if not value > 0:
            raise InputError(f"{name} must be greater than 0, not {value:g}")
