"""CWS's feature clustering: moving class centres, and shells of distance around them.

CWS, eqs. 2 to 4. For each class c of a batch the centre moves towards the batch mean, distances of
the class's samples to the new centre are taken, and the largest of them is cut into SN_c intervals
of equal width; the interval that a sample's distance falls into is its subclass.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


class Clustering:
    """The centres of C classes, and the rule that turns features into subclass ids.

    A centre is the class's first batch mean y_1, and then ``alpha SC + (1 - alpha) y_t`` (`smooth`)
    or ``alpha y_t + (1 - alpha) SC``, as eq. 4 prints it (`printed`). Centres move before distances
    are taken. An interval holds its upper bound and not its lower one; distance 0 is in the first.
    A class whose largest distance is 0, such as a single sample seen for the first time, has all
    its samples in the first interval.

    `batch` scope takes a class's largest distance over its samples in the batch: its farthest
    sample is always in the last interval. `running-max` takes the larger of that and alpha times
    what it was before. `epoch` is for batches that hold the whole set: centres are the means.

    Args:
        subclasses: SN_c (C,).
        dimension: of the features.
        unit: bring features to unit length first.

    Attributes:
        centres: (C, D) float32, `seen` (C,) whether a class has one yet, `radii` (C,) moving
            maxima, `counts` (P,) int64 how many samples were assigned since the last `restart`.
    """

    def __init__(
        self,
        subclasses: Sequence[int],
        dimension: int,
        *,
        centre: str = "smooth",
        alpha: float = 0.99,
        scope: str = "batch",
        unit: bool = False,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        numbers = torch.tensor(subclasses, device=device)
        self.numbers = numbers
        self.offsets = numbers.cumsum(0) - numbers
        self.centres = torch.zeros(len(numbers), dimension, device=device, dtype=dtype)
        self.seen = torch.zeros(len(numbers), dtype=torch.bool, device=device)
        self.radii = torch.zeros(len(numbers), device=device, dtype=dtype)
        self.counts = torch.zeros(sum(subclasses), dtype=torch.int64, device=device)
        self.kept = alpha if centre == "smooth" else 1 - alpha
        self.alpha = alpha
        self.scope = scope
        self.unit = unit

    @torch.no_grad()
    def assign(self, features: Tensor, labels: Tensor) -> Tensor:
        """Move the centres of the classes in the batch, and return subclass ids (B,) int64.

        Args:
            features: (B, D), of any floating-point type.
            labels: (B,) int64.
        """
        values = features.detach().to(self.centres.dtype)
        if self.unit:
            values = F.normalize(values, dim=1)
        self._move(values, labels)
        distances = torch.linalg.vector_norm(values - self.centres[labels], dim=1)
        largest = torch.zeros_like(self.radii).scatter_reduce_(0, labels, distances, "amax")
        if self.scope == "running-max":
            largest = torch.maximum(largest, self.alpha * self.radii)
        present = torch.zeros_like(self.seen).index_fill_(0, labels, True)
        self.radii = torch.where(present, largest, self.radii)
        ids = self.offsets[labels] + shells(distances, self.radii[labels], self.numbers[labels])
        self.counts.index_add_(0, ids, torch.ones_like(ids))
        return ids

    def restart(self) -> Tensor:
        """Return how many samples each subclass was given (P,), and count from 0 again."""
        counts = self.counts
        self.counts = torch.zeros_like(counts)
        return counts

    def state(self) -> dict[str, Tensor]:
        """Return the tensors that a resumed run has to find again, to be copied into."""
        return {"centres": self.centres, "seen": self.seen, "radii": self.radii}

    def _move(self, values: Tensor, labels: Tensor) -> None:
        sums = torch.zeros_like(self.centres).index_add_(0, labels, values)
        number = torch.zeros_like(self.radii).index_add_(0, labels, torch.ones_like(values[:, 0]))
        present = number > 0
        means = sums / number.clamp_min(1).unsqueeze(1)
        if self.scope != "epoch":
            moved = self.kept * self.centres + (1 - self.kept) * means
            means = torch.where(self.seen.unsqueeze(1), moved, means)
        self.centres = torch.where(present.unsqueeze(1), means, self.centres)
        self.seen |= present


def shells(distances: Tensor, largest: Tensor, numbers: Tensor) -> Tensor:
    """Return the interval (B,) int64, from 0, that each distance falls into.

    Interval n of `numbers` is (n w, (n + 1) w] with ``w = largest / numbers``.

    Args:
        distances, largest: (B,).
        numbers: (B,) int64.
    """
    places = torch.ceil(distances * numbers / largest) - 1
    # 0 / 0, where all samples lie in the centre, is no number; nor is what a failed run computes.
    places = torch.nan_to_num(places, nan=0.0).clamp_min(0)
    return places.minimum((numbers - 1).to(places.dtype)).long()
