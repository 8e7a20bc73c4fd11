"""Batches of cached features for the fit loop."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Sampling:
    """What an epoch draws: samples by a `sampler`, and for each its plain feature or a cached view.

    `views` is `cached` or `plain`; `per_class` samples are drawn in a row for each class that is
    drawn. See `ltpipe.data.sampling.epoch_order` for the samplers.
    """

    views: str = "cached"
    sampler: str = "balanced"
    per_class: int = 1


class Draws:
    """Which rows each epoch visits, of V views of the same N samples.

    Row ``v N + i`` is view v of sample i. Each epoch draws samples by the sampler and one view for
    each of them, from a stream of its own.

    Args:
        labels: (N,) int64.
        per_class: samples drawn in a row for each class drawn.
    """

    def __init__(
        self,
        labels: Tensor,
        views: int,
        seed: int,
        *,
        classes: int,
        sampler: str,
        per_class: int = 1,
    ) -> None:
        self.labels = labels.cpu()
        self.views = views
        self.seed = seed
        self.classes = classes
        self.sampler = sampler
        self.per_class = per_class

    def epoch(self, epoch: int) -> tuple[Tensor, Tensor]:
        """Return rows and targets, (N,) int64 each on the CPU."""
        stream = generator(self.seed, "stage2", epoch)
        order = epoch_order(self.labels, self.classes, self.sampler, stream, self.per_class)
        view = torch.randint(self.views, order.shape, generator=stream)
        return view * len(self.labels) + order, self.labels[order]


class FeatureBatches:
    """Batches of features that all sweep points share.

    Args:
        rows: V views of the samples, one after another; see `Draws`.
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
        """Yield inputs (1, B, D) and targets (1, B)."""
        for rows, target in _batches(self.draws, epoch, self.batch_size, self.device):
            yield self.rows.gather(rows).unsqueeze(0), target.unsqueeze(0)


class FusedBatches:
    """Batches of mixtures ``w1 u_kps + (1 - w1) u_ce`` of features, one mixture a model.

    The P coefficients share their draws. Features are of unit length unless `rows` says otherwise.

    Args:
        kps, ce: float (V, N, D), V views of the same N samples.
        draws: which of them each epoch visits.
        coefficients: (P,) w1, on the device of the tables.
    """

    def __init__(
        self,
        kps: Tensor,
        ce: Tensor,
        draws: Draws,
        coefficients: Tensor,
        batch_size: int,
        rows: type[Rows] = UnitRows,
    ) -> None:
        self.kps = rows(kps.flatten(0, 1))
        self.ce = rows(ce.flatten(0, 1))
        self.draws = draws
        self.coefficients = coefficients
        self.batch_size = batch_size

    def __call__(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield inputs (P, B, D) and targets (P, B)."""
        w1 = self.coefficients.view(-1, 1, 1)
        for rows, target in _batches(self.draws, epoch, self.batch_size, w1.device):
            ce, kps = self.ce.gather(rows).unsqueeze(0), self.kps.gather(rows).unsqueeze(0)
            yield torch.lerp(ce, kps, w1), target.expand(len(w1), -1)


def _batches(
    draws: Draws, epoch: int, batch_size: int, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    rows, targets = (part.to(device).split(batch_size) for part in draws.epoch(epoch))
    return zip(rows, targets, strict=True)


def drawn_views(store: FeatureStore, views: str) -> Tensor:
    """Return what epochs draw from, (V, N, D): `cached` views, or the `plain` feature alone.

    Raises:
        InputError: views are asked for and not cached.
    """
    if views == "plain":
        return torch.from_numpy(store.features)[None]
    return torch.from_numpy(store.standard_views())
