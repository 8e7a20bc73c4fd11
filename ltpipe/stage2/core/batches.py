"""Batches of cached features for the fit loop, drawn for each seed as it would be drawn alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from ltpipe.data.sampling import epoch_order
from ltpipe.features.store import FeatureStore
from ltpipe.utils.seeding import generator


class Rows:
    """Rows of a feature table (R, D), which stays in the type it was cached in."""

    def __init__(self, table: Tensor) -> None:
        self.table = table

    def gather(self, rows: Tensor) -> Tensor:
        """Return rows float32 (..., D) for row numbers of any shape."""
        return self.table.index_select(0, rows.reshape(-1)).float().view(*rows.shape, -1)


def unit_rows(rows: Tensor) -> Tensor:
    """Return rows (N, D) brought to unit length; a zero row stays zero."""
    return rows * _unit_factors(torch.linalg.vector_norm(rows, dim=1)).unsqueeze(1)


def squashed_rows(rows: Tensor) -> Tensor:
    """Return rows (N, D) as `SquashedRows` scales them."""
    return rows * _squash_factors(torch.linalg.vector_norm(rows, dim=1)).unsqueeze(1)


def _unit_factors(norms: Tensor) -> Tensor:
    return norms.clamp_min(1e-12).reciprocal()


def _squash_factors(norms: Tensor) -> Tensor:
    return (1 + norms).reciprocal()


class UnitRows(Rows):
    """Rows brought to unit length when they are gathered; a zero row stays zero."""

    def __init__(self, table: Tensor) -> None:
        super().__init__(table)
        self.factors = _unit_factors(_norms(table)).unsqueeze(1)

    def gather(self, rows: Tensor) -> Tensor:
        flat = rows.reshape(-1)
        units = self.table.index_select(0, flat).float()
        units.mul_(self.factors.index_select(0, flat))
        return units.view(*rows.shape, -1)


class SquashedRows(UnitRows):
    """Rows x scaled to ``x / (1 + |x|)``, of length below one.

    Liu et al., "Large-Scale Long-Tailed Recognition in an Open World", CVPR 2019, eq. 6.
    """

    def __init__(self, table: Tensor) -> None:
        super().__init__(table)
        self.factors = _squash_factors(_norms(table)).unsqueeze(1)


def _norms(table: Tensor) -> Tensor:
    norms = [torch.linalg.vector_norm(block.float(), dim=1) for block in table.split(1 << 16)]
    return torch.cat(norms)


class HasRows(Protocol):
    """A table whose rows can be gathered."""

    def gather(self, rows: Tensor) -> Tensor:
        """Return rows (..., D) for row numbers of any shape."""
        ...


class Draws:
    """Which rows each epoch visits: S seeds, each with V views of the same N samples.

    Row ``(s V + v) N + i`` is view v of sample i of seed s. Each epoch draws samples by the
    sampler and one view for each of them, from streams of the seed alone.

    Args:
        labels: (N,) int64.
        per_class: samples drawn in a row for each class drawn.
    """

    def __init__(
        self,
        labels: Tensor,
        views: int,
        seeds: list[int],
        *,
        classes: int,
        sampler: str,
        per_class: int = 1,
    ) -> None:
        self.labels = labels.cpu()
        self.views = views
        self.seeds = seeds
        self.classes = classes
        self.sampler = sampler
        self.per_class = per_class

    def epoch(self, epoch: int) -> tuple[Tensor, Tensor]:
        """Return rows and targets, (S, N) int64 each on the CPU."""
        rows, targets = [], []
        for place, seed in enumerate(self.seeds):
            draws = generator(seed, "stage2", epoch)
            order = epoch_order(self.labels, self.classes, self.sampler, draws, self.per_class)
            view = torch.randint(self.views, order.shape, generator=draws)
            rows.append((place * self.views + view) * len(self.labels) + order)
            targets.append(self.labels[order])
        return torch.stack(rows), torch.stack(targets)


class FeatureBatches:
    """Batches of S stores' features, one store a seed; the points of a seed share its batches.

    Args:
        rows: the S stores' views, one after another; see `Draws`.
        draws: which of them each epoch visits.
    """

    def __init__(
        self, rows: HasRows, draws: Draws, batch_size: int, device: torch.device | str = "cpu"
    ) -> None:
        self.rows = rows
        self.draws = draws
        self.batch_size = batch_size
        self.device = torch.device(device)

    def __call__(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield inputs (S, B, D) and targets (S, B)."""
        rows, targets = (part.to(self.device) for part in self.draws.epoch(epoch))
        size = self.batch_size
        for chosen, target in zip(rows.split(size, 1), targets.split(size, 1), strict=True):
            yield self.rows.gather(chosen), target


class FusedBatches:
    """Batches of mixtures ``w1 u_kps + (1 - w1) u_ce`` of unit features for S x P models.

    Each of S seeds has tables of V views of the same N samples; the P coefficients of a seed share
    its draws. Model s * P + p has seed s and coefficient p.

    Args:
        kps, ce: S tables each, float (V, N, D), of one split.
        labels: (N,) int64.
        coefficients: (P,) w1.
        seeds: S seeds.
    """

    def __init__(
        self,
        kps: list[Tensor],
        ce: list[Tensor],
        labels: Tensor,
        coefficients: Tensor,
        seeds: list[int],
        *,
        classes: int,
        sampler: str,
        batch_size: int,
    ) -> None:
        self.kps = UnitRows(joined_views(kps))
        self.ce = UnitRows(joined_views(ce))
        self.draws = Draws(labels, len(kps[0]), seeds, classes=classes, sampler=sampler)
        self.coefficients = coefficients
        self.batch_size = batch_size

    def __call__(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield inputs (S * P, B, D) and targets (S * P, B)."""
        device = self.coefficients.device
        rows, targets = (part.to(device) for part in self.draws.epoch(epoch))
        points, size = len(self.coefficients), self.batch_size
        w1 = self.coefficients.view(1, -1, 1, 1)
        for chosen, target in zip(rows.split(size, 1), targets.split(size, 1), strict=True):
            ce = self.ce.gather(chosen).unsqueeze(1)
            kps = self.kps.gather(chosen).unsqueeze(1)
            mixed = torch.lerp(ce, kps, w1).flatten(0, 1)
            expanded = target.unsqueeze(1).expand(-1, points, -1).flatten(0, 1)
            yield mixed, expanded


def joined_views(tables: list[Tensor]) -> Tensor:
    """Return S tables (V, N, D) as one of rows, (S V N, D)."""
    if len(tables) == 1:
        return tables[0].flatten(0, 1)
    return torch.cat([table.flatten(0, 1) for table in tables])


def drawn_views(store: FeatureStore, views: str) -> Tensor:
    """Return what epochs draw from, (V, N, D): `cached` views, or the `plain` feature alone.

    Raises:
        InputError: views are asked for and not cached.
    """
    if views == "plain":
        return torch.from_numpy(store.features)[None]
    return torch.from_numpy(store.standard_views())
