"""The one fit loop of stage two: many cosine classifiers trained at once.

M models stand in one weight (M, C, D). A step is two batched matrix products and the closed-form
gradient of a margin softmax, so a sweep costs little more than its largest product, and M models
fitted together equal M models fitted alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ltpipe.data.sampling import epoch_order
from ltpipe.progress import track
from ltpipe.seeding import generator
from ltpipe.training.schedules import learning_rate

# Yields inputs (M, B, D) and targets (M, B) of one epoch.
EpochBatches = Callable[[int], Iterator[tuple[Tensor, Tensor]]]


@dataclass(frozen=True)
class Recipe:
    """How classifiers are fitted; the schedule has no warm-up."""

    epochs: int
    batch_size: int
    learning_rate: float
    schedule: str
    momentum: float
    weight_decay: float


class MarginSoftmax:
    """Mean cross-entropy of ``scale * (cos - margin_y at y)``: LDAM's loss and its gradient.

    Cao et al., NeurIPS 2019, eq. 13, without class weights.
    """

    def __init__(self, margins: Tensor, scale: float) -> None:
        self.margins = margins
        self.scale = scale

    def gradient_(self, cosines: Tensor, target: Tensor) -> Tensor:
        """Overwrite cosines (M, B, C) with the gradient of each model's mean loss by them.

        A margin and a one-hot vector enter by scatter at the target (M, B).
        """
        places = target.unsqueeze(-1)
        cosines.mul_(self.scale)
        cosines.scatter_add_(2, places, self.margins[places].mul_(-self.scale))
        probabilities = torch.softmax(cosines, dim=-1)
        probabilities.scatter_add_(2, places, probabilities.new_full((), -1.0).expand(places.shape))
        return probabilities.mul_(self.scale / target.shape[1])


def fit_cosine_classifiers(
    weight: Tensor,
    batches: EpochBatches,
    loss: MarginSoftmax,
    recipe: Recipe,
    *,
    on_epoch: Callable[[int, Tensor], None] | None = None,
    description: str = "fitting",
) -> Tensor:
    """Fit M cosine classifiers by momentum SGD and return their weights (M, C, D).

    Cosines are ``x . W_c / ||W_c||``: inputs are taken as they come, because FFN's mixtures of
    unit features are not unit again. Weight decay acts on W, as in torch.optim.SGD.

    Args:
        weight: the initial weights (M, C, D); left unchanged.
        batches: the inputs (M, B, D) and targets (M, B) of each epoch.
        on_epoch: told the 0-based epoch and the weights after each epoch.
    """
    weight = weight.clone()
    momentum = torch.zeros_like(weight)
    for epoch in track(range(recipe.epochs), description):
        rate = learning_rate(recipe.schedule, recipe.learning_rate, epoch, recipe.epochs)
        for inputs, target in batches(epoch):
            norms = torch.linalg.vector_norm(weight, dim=2, keepdim=True).clamp_min_(1e-12)
            directions = weight / norms
            cosines = torch.bmm(inputs, directions.transpose(1, 2))
            by_cosines = loss.gradient_(cosines, target)
            gradient = torch.bmm(by_cosines.transpose(1, 2), inputs)
            radial = torch.linalg.vecdot(gradient, directions).unsqueeze(-1)
            gradient.addcmul_(radial, directions, value=-1).div_(norms)
            gradient.add_(weight, alpha=recipe.weight_decay)
            momentum.mul_(recipe.momentum).add_(gradient)
            weight.add_(momentum, alpha=-rate)
        if on_epoch is not None:
            on_epoch(epoch, weight)
    return weight


def cosine_scores(weight: Tensor, inputs: Tensor) -> Tensor:
    """Return ``inputs (N, D) . W_c / ||W_c||`` for one classifier (C, D): (N, C)."""
    return inputs @ F.normalize(weight, dim=1).T


class UnitRows:
    """Rows of a feature table brought to unit length when they are gathered.

    The table (R, D) stays in the type it was cached in; a zero row stays zero.
    """

    def __init__(self, table: Tensor) -> None:
        self.table = table
        norms = [torch.linalg.vector_norm(block.float(), dim=1) for block in table.split(1 << 16)]
        self.inverse_norms = torch.cat(norms).clamp_min_(1e-12).reciprocal_().unsqueeze(1)

    def gather(self, rows: Tensor) -> Tensor:
        """Return unit rows float32 (..., D) for row numbers of any shape."""
        flat = rows.reshape(-1)
        units = self.table.index_select(0, flat).float()
        units.mul_(self.inverse_norms.index_select(0, flat))
        return units.view(*rows.shape, -1)


class FusedBatches:
    """Batches of mixtures ``w1 u_kps + (1 - w1) u_ce`` of unit features for P x S models.

    Each of S seeds has tables of V views of the same N samples and draws its own samples and
    views, exactly as it would alone; the P coefficients of a seed share its draws. Model s * P + p
    has seed s and coefficient p.

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
        self.views, self.samples, self.dimension = kps[0].shape
        self.kps = UnitRows(_stack(kps))
        self.ce = UnitRows(_stack(ce))
        self.labels = labels.cpu()
        self.coefficients = coefficients
        self.seeds = seeds
        self.classes = classes
        self.sampler = sampler
        self.batch_size = batch_size

    def __call__(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield inputs (S * P, B, D) and targets (S * P, B); each epoch draws one view a sample."""
        device = self.coefficients.device
        rows, targets = [], []
        for place, seed in enumerate(self.seeds):
            draws = generator(seed, "stage2", epoch)
            order = epoch_order(self.labels, self.classes, self.sampler, draws)
            view = torch.randint(self.views, order.shape, generator=draws)
            rows.append((place * self.views + view) * self.samples + order)
            targets.append(self.labels[order])
        points = len(self.coefficients)
        all_rows = torch.stack(rows).to(device)
        all_targets = torch.stack(targets).to(device)
        w1 = self.coefficients.view(1, -1, 1, 1)
        for chosen, target in zip(
            all_rows.split(self.batch_size, 1), all_targets.split(self.batch_size, 1), strict=True
        ):
            ce = self.ce.gather(chosen).unsqueeze(1)
            kps = self.kps.gather(chosen).unsqueeze(1)
            mixed = torch.lerp(ce, kps, w1).flatten(0, 1)
            expanded = target.unsqueeze(1).expand(-1, points, -1).flatten(0, 1)
            yield mixed, expanded


def _stack(tables: list[Tensor]) -> Tensor:
    if len(tables) == 1:
        return tables[0].flatten(0, 1)
    return torch.cat([table.flatten(0, 1) for table in tables])
