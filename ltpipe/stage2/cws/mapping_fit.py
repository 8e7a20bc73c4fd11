"""The fit of CWS's label mapping, and fits under a rule that follows the epochs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ltpipe.losses.building import build_loss
from ltpipe.models.mapping import fresh_mapping, map_scores, mapped, mapping_input
from ltpipe.stage2.core.batches import Draws, HasRows, Rows
from ltpipe.stage2.core.fit import Parameters, fit, stacked
from ltpipe.stage2.core.logit_gradients import LogitGradient, logit_gradient
from ltpipe.stage2.core.retraining import recipe_of
from ltpipe.training.rules import phases
from ltpipe.utils.seeding import generator


def head_of(settings: Any) -> str:
    """Return the kind of output layer that the settings' loss takes."""
    return "cosine" if settings.loss.takes_cosines else "linear"


class Phased:
    """A loss under a rule on feature batches: class weights and draws as each epoch wants them.

    Args:
        settings: a `SubclassMapping`'s, with loss, rule and recipe.
        weighed: how many samples each target has, for margins and weights.
        labels: (N,) classes, by which samples are drawn.
        classes: how many there are.
    """

    def __init__(
        self,
        settings: Any,
        weighed: Sequence[int],
        labels: Tensor,
        classes: int,
        seed: int,
        device: torch.device,
    ) -> None:
        self.settings = settings
        self.loss = build_loss(settings.loss, weighed).to(device)
        self.plan = phases(settings.rule, weighed, settings.epochs)
        self.labels = labels
        self.classes = classes
        self.seed = seed
        self.device = device
        self.on_epoch(-1, {})

    def on_epoch(self, epoch: int, parameters: Parameters) -> None:
        """Prepare for what follows the 0-based `epoch`."""
        if epoch + 1 < len(self.plan):
            weights = self.plan[epoch + 1].weights
            self.loss.reweight(None if weights is None else weights.to(self.device))
            self.loss.on_epoch(epoch + 1)
            self.gradient = logit_gradient(self.loss, 1.0, self.device)

    def __call__(self, logits: Tensor, target: Tensor) -> Tensor:
        return self.gradient(logits, target)

    def batches(self, rows: HasRows, views: int, targets: Tensor | None = None) -> Any:
        """Return the batches of each epoch, for the fit loop.

        Args:
            rows: V views of N samples, one after another.
            targets: (N,) what to learn of each sample; its label unless given.
        """
        drawn = {
            sampler: Draws(
                self.labels,
                views,
                [self.seed],
                classes=self.classes,
                sampler=sampler,
                per_class=self.settings.per_class,
            )
            for sampler in {phase.sampler for phase in self.plan}
        }
        wanted = (self.labels if targets is None else targets).to(self.device)

        def epoch_batches(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
            order, _ = drawn[self.plan[epoch].sampler].epoch(epoch)
            for chosen in order.to(self.device).split(self.settings.batch_size, 1):
                yield rows.gather(chosen), wanted[chosen % len(wanted)]

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
        found = torch.autograd.grad(outputs, list(leaves.values()), by_outputs)
        return dict(zip(leaves, found, strict=True))


def fit_mapping(
    logits: Tensor,
    labels: Tensor,
    settings: Any,
    class_counts: Sequence[int],
    seed: int,
    device: torch.device,
) -> Parameters:
    """Return the perceptrons of P points, fitted together: parameters (P, ...).

    Losses on cosines get a cosine output layer.

    Args:
        logits: (V, N, S) subclass logits of V views of the same N samples, on `device`.
        labels: (N,) int64, classes.
        settings: a `SubclassMapping`'s.
    """
    width, points = logits.shape[2], len(settings.points())
    fresh = fresh_mapping(
        width,
        len(class_counts),
        settings.hidden or width,
        head_of(settings),
        generator(seed, "mapping"),
    )
    phased = Phased(settings, class_counts, labels, len(class_counts), seed, device)
    rows = Rows(mapping_input(logits, settings.input).flatten(0, 1))
    return fit(
        {name: stacked([value], points).to(device) for name, value in fresh.items()},
        MappingModel(phased),
        phased.batches(rows, len(logits)),
        recipe_of(settings, 1, device),
        on_epoch=phased.on_epoch,
        description=f"label mapping, {points} models",
    )


def mapped_logits(one: Parameters, logits: Tensor, settings: Any) -> Tensor:
    """Return what softmax should see (N, C) of one perceptron, for subclass logits (N, S)."""
    outputs = mapped(one, logits, settings.input)
    classes = outputs.shape[1]
    return build_loss(settings.loss, [1] * classes).logits(outputs)
