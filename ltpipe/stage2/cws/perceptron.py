"""The fit of CWS's label mapping, a perceptron, and fits under a rule that follows the epochs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ltpipe.losses.base import Loss
from ltpipe.models.mapping import fresh_mapping, map_scores, mapping_input
from ltpipe.stage2.core.batches import Draws, HasRows, Rows
from ltpipe.stage2.core.fit import EpochBatches, Parameters, Recipe, fit, repeated
from ltpipe.stage2.core.logit_gradients import LogitGradient, logit_gradient
from ltpipe.training.rules import Phase
from ltpipe.utils.seeding import generator


class Phased:
    """A loss under a rule on feature batches: class weights and draws as each epoch wants them.

    Args:
        phases: what holds in each epoch.
        labels: (N,) classes, by which samples are drawn.
        classes: how many there are.
        per_class: samples drawn in a row for each class drawn.
    """

    def __init__(
        self,
        loss: Loss,
        phases: Sequence[Phase],
        labels: Tensor,
        classes: int,
        seed: int,
        device: torch.device,
        *,
        per_class: int = 1,
    ) -> None:
        self.loss = loss.to(device)
        self.phases = phases
        self.labels = labels
        self.classes = classes
        self.seed = seed
        self.device = device
        self.per_class = per_class
        self.on_epoch(-1, {})

    def on_epoch(self, epoch: int, parameters: Parameters) -> None:
        """Prepare for what follows the 0-based `epoch`."""
        if epoch + 1 < len(self.phases):
            weights = self.phases[epoch + 1].weights
            self.loss.reweight(None if weights is None else weights.to(self.device))
            self.loss.on_epoch(epoch + 1)
            self.gradient = logit_gradient(self.loss, 1.0, self.device)

    def __call__(self, logits: Tensor, target: Tensor) -> Tensor:
        return self.gradient(logits, target)

    def batches(
        self, rows: HasRows, views: int, batch_size: int, targets: Tensor | None = None
    ) -> EpochBatches:
        """Return the batches of each epoch, for the fit loop.

        Args:
            rows: V views of N samples, one after another.
            targets: (N,) what to learn of each sample; its label unless given.
        """
        by_sampler = {
            sampler: Draws(
                self.labels,
                views,
                self.seed,
                classes=self.classes,
                sampler=sampler,
                per_class=self.per_class,
            )
            for sampler in {phase.sampler for phase in self.phases}
        }
        learned = (self.labels if targets is None else targets).to(self.device)

        def epoch_batches(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
            order, _ = by_sampler[self.phases[epoch].sampler].epoch(epoch)
            for part in order.to(self.device).split(batch_size):
                yield rows.gather(part).unsqueeze(0), learned[part % len(learned)].unsqueeze(0)

        return epoch_batches


class MappingModel:
    """Perceptrons from subclass scores to classes; see `ltpipe.models.mapping`."""

    def __init__(self, gradient: LogitGradient) -> None:
        self.gradient = gradient

    def gradients(self, parameters: Parameters, inputs: Tensor, target: Tensor) -> Parameters:
        leaves = {name: value.detach().requires_grad_() for name, value in parameters.items()}
        with torch.enable_grad():
            outputs = map_scores(leaves, inputs)
        by_outputs = self.gradient(outputs.detach().clone(), target)
        gradients = torch.autograd.grad(outputs, list(leaves.values()), by_outputs)
        return dict(zip(leaves, gradients, strict=True))


def fit_mapping(
    logits: Tensor,
    labels: Tensor,
    classes: int,
    loss: Loss,
    phases: Sequence[Phase],
    recipe: Recipe,
    seed: int,
    device: torch.device,
    *,
    cosine: bool = False,
    hidden: int | None = None,
    input: str = "logits",
    per_class: int = 1,
) -> Parameters:
    """Return the perceptrons of the recipe's P points, fitted together: parameters (P, ...).

    Args:
        logits: (V, N, S) subclass logits of V views of the same N samples, on `device`.
        labels: (N,) int64, classes.
        phases: what holds in each epoch.
        cosine: whether the output layer gives cosines, as losses on cosines need it.
        hidden: hidden units; one a subclass unless given.
        input: what the perceptrons see of the logits; see `mapping_input`.
        per_class: samples drawn in a row for each class drawn.
    """
    width = logits.shape[2]
    head = "cosine" if cosine else "linear"
    start = fresh_mapping(width, classes, hidden or width, head, generator(seed, "mapping"))
    phased = Phased(loss, phases, labels, classes, seed, device, per_class=per_class)
    rows = Rows(mapping_input(logits, input).flatten(0, 1))
    return fit(
        repeated(start, recipe.points, device),
        MappingModel(phased),
        phased.batches(rows, len(logits), recipe.batch_size),
        recipe,
        on_epoch=phased.on_epoch,
        description=f"label mapping, {recipe.points} models",
    )
