"""How well each sample is memorised, by the moving average of its loss.

Zhou et al., "Contrastive Learning with Boosted Memorization" (BCL), ICML 2022; ECVL, eqs. 8 and 9:
losses of samples that are learned late, as those of rare classes, stay above the mean.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ltpipe.data.sampling import epoch_order


def memory_values(averages: Tensor, known: Tensor, *, signed: bool = False) -> Tensor:
    """Return M (..., N) in 0 .. 1: ``((L - mean) / max |L - mean| + 1) / 2`` (eq. 9).

    As printed, `signed`, the divisor has no absolute value, and M is cut off below 0. Samples that
    are not `known` have M = 0, equal losses M = 1/2.

    Args:
        averages: (..., N) the momentum losses L.
        known: (..., N) bool, which of them were measured.
    """
    number = known.sum(-1, keepdim=True).clamp_min(1)
    mean = torch.where(known, averages, 0).sum(-1, keepdim=True) / number
    deviations = torch.where(known, averages - mean, 0)
    size = deviations if signed else deviations.abs()
    largest = size.amax(-1, keepdim=True)
    shares = torch.where(largest > 0, deviations / largest.clamp_min(1e-12), 0)
    return torch.where(known, ((shares + 1) / 2).clamp(0, 1), 0)


class Memory:
    """The momentum losses of N samples, for P models.

    An image's losses within an epoch are averaged before the average moves once; images that were
    not drawn keep their value. Sums are kept in double precision, so that the order in which a GPU
    adds does not show.
    """

    def __init__(
        self, points: int, samples: int, beta: float, *, signed: bool, device: torch.device
    ) -> None:
        self.beta = beta
        self.signed = signed
        self.averages = torch.zeros((points, samples), device=device)
        self.known = torch.zeros((points, samples), dtype=torch.bool, device=device)
        self._sums = torch.zeros((points, samples), dtype=torch.float64, device=device)
        self._numbers = torch.zeros_like(self._sums)

    def add(self, index: Tensor, losses: Tensor) -> None:
        """Note the losses (P, B) of the samples `index` (P, B)."""
        self._sums.scatter_add_(1, index, losses.detach().double())
        self._numbers.scatter_add_(1, index, torch.ones_like(losses, dtype=torch.float64))

    def end_epoch(self) -> None:
        """Move the averages by what the epoch noted (eq. 8); a first loss is taken as it is."""
        drawn = self._numbers > 0
        losses = (self._sums / self._numbers.clamp_min(1)).float()
        moved = torch.where(self.known, torch.lerp(losses, self.averages, self.beta), losses)
        self.averages = torch.where(drawn, moved, self.averages)
        self.known |= drawn
        self._sums.zero_()
        self._numbers.zero_()

    def values(self) -> Tensor:
        """Return each sample's M, (P, N); 0 before anything was measured."""
        return memory_values(self.averages, self.known, signed=self.signed)


def memory_order(
    labels: Tensor, memory: Tensor, classes: int, per_class: int, draws: torch.Generator
) -> Tensor:
    """Return N positions: classes alike, and of a class its samples in proportion to their memory.

    Where a class's memory is all zero its samples are alike.

    Args:
        labels, memory: (N,) on the CPU.
    """
    weight = memory.double()
    sums = torch.zeros(classes, dtype=torch.float64).index_add_(0, labels, weight)
    weight = torch.where(sums[labels] > 0, weight, 1.0)
    total = len(labels)
    drawn = epoch_order(labels, classes, "balanced", draws, per_class)
    # Within each class: the place where its share of a uniform number falls in the running sum.
    by_class = torch.argsort(labels, stable=True)
    running = weight[by_class].cumsum(0)
    counts = torch.bincount(labels, minlength=classes)
    last = counts.cumsum(0) - 1
    ends = running[last.clamp_min(0)]
    starts = torch.cat([running.new_zeros(1), running])[counts.cumsum(0) - counts]
    label = labels[drawn]
    uniform = torch.rand(total, dtype=torch.float64, generator=draws)
    at = starts[label] + uniform * (ends - starts)[label]
    places = torch.searchsorted(running, at, right=True)
    places = places.minimum(last[label]).maximum((counts.cumsum(0) - counts)[label])
    return by_class[places]
