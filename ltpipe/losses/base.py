"""What all losses share: their interface, class weights, and checked class counts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ltpipe.utils.errors import InputError


@dataclass(frozen=True)
class SoftmaxForm:
    """What a loss makes of logits: ``scale (z - margins_y at y) + prior``."""

    scale: float = 1.0
    margins: Tensor | None = None
    prior: Tensor | None = None


class Loss(nn.Module, ABC):
    """A loss called as ``loss(logits (B, C), target (B,) int64) -> scalar``, the batch mean.

    A loss of one's own defines `per_sample`. With class weights w (C,) the mean is
    ``sum w_y l / sum w_y``, as in torch's weighted cross-entropy, whichever the loss; weights
    come from the loss itself (`weight`) and from a rebalancing rule (`reweight`), and multiply.

    Half-precision logits are raised to float32 before anything is computed. What a loss knows
    about the classes is kept in buffers outside the state dict: it follows ``.to(device)`` and is
    rebuilt from the counts, never loaded.
    """

    # Whether the logits are cosines, which come from a classifier with `head: cosine`.
    takes_cosines: ClassVar[bool] = False
    # Pairs of arguments, the first of which must not exceed the second.
    at_most: ClassVar[tuple[tuple[str, str], ...]] = ()

    weight: Tensor | None
    rule_weight: Tensor | None

    def __init__(self, weight: Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("weight", weight, persistent=False)
        self.register_buffer("rule_weight", None, persistent=False)

    @abstractmethod
    def per_sample(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return each sample's unweighted loss (B,) for logits (B, C) of float32 or better."""

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        total, weight = self.sums(logits, target)
        return total / weight

    def sums(self, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return the weighted sum of the samples' losses, and the sum of their weights."""
        losses = self.per_sample(at_least_float32(logits), target)
        weights = self.class_weights()
        if weights is None:
            return losses.sum(), losses.new_full((), len(losses))
        chosen = weights.to(losses.dtype)[target]
        return (chosen * losses).sum(), chosen.sum()

    def class_weights(self) -> Tensor | None:
        """Return the weights (C,) in force, or None where all classes weigh the same."""
        if self.weight is None or self.rule_weight is None:
            return self.weight if self.rule_weight is None else self.rule_weight
        return self.weight * self.rule_weight

    def reweight(self, weights: Tensor | None) -> None:
        """Let a rule's class weights (C,) act from now on; None ends them."""
        self.rule_weight = weights

    def on_epoch(self, epoch: int) -> None:
        """Announce the 0-based `epoch` before its first batch; most losses have nothing to do."""

    def logits(self, outputs: Tensor) -> Tensor:
        """Return what softmax should see at test time, given the network's outputs (B, C)."""
        return outputs


class SoftmaxLoss(Loss):
    """A loss that is cross-entropy on ``scale (z - margins_y at y) + prior``, as `form` says.

    Stage two knows the gradient of this form by hand.
    """

    @property
    @abstractmethod
    def form(self) -> SoftmaxForm:
        """Scale, margins (C,) and prior (C,) of the loss."""

    def per_sample(self, logits: Tensor, target: Tensor) -> Tensor:
        form = self.form
        if form.margins is not None:
            logits = subtract_at_target(logits, form.margins[target], target)
        if form.scale != 1:
            logits = form.scale * logits
        if form.prior is not None:
            logits = logits + form.prior
        return F.cross_entropy(logits, target, reduction="none")

    def logits(self, outputs: Tensor) -> Tensor:
        return outputs if self.form.scale == 1 else self.form.scale * outputs


def subtract_at_target(values: Tensor, margins: Tensor, target: Tensor) -> Tensor:
    """Subtract margins (B,) from the target's column of values (B, C)."""
    is_target = target.unsqueeze(1) == torch.arange(values.shape[1], device=values.device)
    return torch.where(is_target, values - margins.unsqueeze(1), values)


def at_least_float32(values: Tensor) -> Tensor:
    """Raise half precision to float32 and leave float32 and float64 as they are."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def checked_counts(class_counts: Sequence[int] | Tensor) -> Tensor:
    """Return the training images per class as float64 (C,).

    Raises:
        InputError: there is no class, or a class has no training image.
    """
    # Looked at as numbers: a graph that is being exported has no values in its tensors.
    numbers = class_counts.tolist() if isinstance(class_counts, Tensor) else list(class_counts)
    if not isinstance(numbers, list) or not numbers or isinstance(numbers[0], list):
        raise InputError("class_counts must list one count per class, for at least one class")
    for index, count in enumerate(numbers):
        if not 0 < count < float("inf"):
            raise InputError(f"class {index} has {count:g} training images; it needs at least one")
    return torch.tensor(numbers, dtype=torch.float64)
