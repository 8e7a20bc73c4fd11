"""Cached views by strength: from each sample's memory to one of its views."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from ltpipe.features.store import FeatureStore
from ltpipe.stage2.ecvl.training import Batch
from ltpipe.utils.errors import InputError


class CachedViews:
    """The views of a training store by strength level, from the standard ones up.

    Args:
        pairs: whether two different views of an image are wanted at once.

    Raises:
        InputError: views are asked for that the store lacks.
    """

    def __init__(
        self,
        store: FeatureStore,
        device: torch.device,
        *,
        plain: bool,
        by_strength: bool,
        pairs: bool = False,
    ) -> None:
        if plain:
            views, strength = store.features[None], np.zeros(1, np.float32)
        else:
            standard = store.standard_views()
            views, strength = standard, np.zeros(len(standard), np.float32)
            if by_strength:
                if store.view_strength is None or not (store.view_strength > 0).any():
                    raise InputError(
                        f"{store.path}: no RandAugment views are cached; set features.ladder of "
                        "the backbone, or randaugment: false in the method"
                    )
                assert store.views is not None
                views, strength = store.views, store.view_strength
        order = np.argsort(strength, kind="stable")
        if not np.array_equal(order, np.arange(len(order))):
            views, strength = views[order], strength[order]
        levels, first, numbers = np.unique(strength, return_index=True, return_counts=True)
        if pairs and numbers.min() < 2:
            raise InputError(
                f"{store.path}: strength {levels[numbers.argmin()]:g} has one view, and two views "
                "of an image must differ; set features.views and features.ladder.draws of the "
                "backbone to 2 at least"
            )
        self.samples = len(store.labels)
        self.labels = torch.from_numpy(store.labels).to(device)
        self.rows = torch.from_numpy(views).to(device).flatten(0, 1)
        strengths = torch.from_numpy(levels).float().to(device)
        self.middles = (strengths[1:] + strengths[:-1]) / 2
        self.first = torch.from_numpy(first).to(device)
        self.numbers = torch.from_numpy(numbers).to(device)

    def nearest(self, memory: Tensor) -> Tensor:
        """Return the strength level that is nearest to what each memory asks for."""
        return torch.bucketize(memory.contiguous(), self.middles)

    def epoch(
        self,
        order: Tensor,
        memory: Tensor | None,
        views: int,
        batch_size: int,
        draws: torch.Generator,
    ) -> Iterator[Batch]:
        """Yield the samples of `order` batch by batch, `views` views of each.

        A sample's views are drawn from the level that its memory asks for, or from the standard
        ones where `memory` is None; two views are two different ones.

        Args:
            order: (P, T) int64 on the CPU.
            memory: (P, N) or None.
            views: 1 or 2.
            draws: a CPU generator; the points share its draws.
        """
        device = self.rows.device
        uniform = torch.rand((views, order.shape[1]), generator=draws).to(device)
        order = order.to(device)
        level = torch.zeros_like(order) if memory is None else self.nearest(memory.gather(1, order))
        numbers = self.numbers[level]
        which = [(uniform[0] * numbers).long().minimum(numbers - 1)]
        if views == 2:
            # One of the others: so many places on, round the end of the level.
            others = numbers - 1
            step = 1 + (uniform[1] * others).long().minimum(others - 1)
            which.append((which[0] + step) % numbers)
        rows = (self.first[level] + torch.stack(which)).movedim(0, 1) * self.samples
        rows += order.unsqueeze(1)
        labels = self.labels[order]
        parts = zip(*(part.split(batch_size, -1) for part in (order, labels, rows)), strict=True)
        for index, target, places in parts:
            features = self.rows.index_select(0, places.flatten()).float()
            yield index, target, features.view(*places.shape, -1)
