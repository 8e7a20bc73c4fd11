"""The one fit loop of stage two: many small classifiers trained at once.

M models stand along the first axis of every parameter. A step is a few batched matrix products
and gradients by hand, so a sweep costs little more than its largest product, and M models fitted
together equal M models fitted alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from ltpipe.progress import track
from ltpipe.training.schedules import learning_rate

Parameters = dict[str, Tensor]
# Yields inputs (G, B, D) and targets (G, B) of one epoch: G is M, or a divisor of it where each
# run of M / G models sees the same batches.
EpochBatches = Callable[[int], Iterator[tuple[Tensor, Tensor]]]

# Half a megabyte of float32: weight, gradient and momentum fit into 2 MB of cache.
_BLOCK = 1 << 17


@dataclass(frozen=True)
class Recipe:
    """How models are fitted: momentum SGD with a schedule without warm-up.

    `learning_rate` is one number, or (M,) of them. `factors` multiply the rate of the parameters
    that they name.
    """

    epochs: int
    batch_size: int
    learning_rate: float | Tensor
    schedule: str
    momentum: float
    weight_decay: float
    factors: Mapping[str, float] = field(default_factory=dict)


class Model(Protocol):
    """M models of one kind."""

    def gradients(self, parameters: Parameters, inputs: Tensor, target: Tensor) -> Parameters:
        """Return the gradient of each model's mean loss, for the parameters that are trained.

        They are new tensors of the parameters' shapes, free to be overwritten.
        """
        ...


def fit(
    parameters: Parameters,
    model: Model,
    batches: EpochBatches,
    recipe: Recipe,
    *,
    on_epoch: Callable[[int, Parameters], None] | None = None,
    description: str = "fitting",
) -> Parameters:
    """Train `parameters` in place by momentum SGD, as torch.optim.SGD does, and return them.

    Weight decay acts on whatever is trained.

    Args:
        parameters: tensors with M models along the first axis.
        batches: the inputs and targets of each epoch.
        on_epoch: told the 0-based epoch and the parameters after each epoch.
    """
    momenta: Parameters = {}
    for epoch in track(range(recipe.epochs), description):
        share = learning_rate(recipe.schedule, 1.0, epoch, recipe.epochs)
        for inputs, target in batches(epoch):
            for name, gradient in model.gradients(parameters, inputs, target).items():
                value = parameters[name]
                first = name not in momenta
                momentum = momenta.setdefault(name, gradient)
                rate = share * recipe.factors.get(name, 1.0)
                for v, g, m in _blocks(value, gradient, momentum):
                    g.add_(v, alpha=recipe.weight_decay)
                    if not first:
                        m.mul_(recipe.momentum).add_(g)
                    if not isinstance(recipe.learning_rate, Tensor):
                        v.add_(m, alpha=-recipe.learning_rate * rate)
                if isinstance(recipe.learning_rate, Tensor):
                    rates = (recipe.learning_rate * rate).view(-1, *[1] * (value.ndim - 1))
                    value.addcmul_(momentum, rates, value=-1)
        if on_epoch is not None:
            on_epoch(epoch, parameters)
    return parameters


def _blocks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield equal places of tensors of one shape, as many as a core's cache holds together.

    The operations of a step then find in the cache what the one before has left there. A GPU would
    rather have one large operation.
    """
    one = tensors[0]
    divided = one.device.type == "cpu" and one.numel() > _BLOCK
    if divided and all(tensor.is_contiguous() for tensor in tensors):
        yield from zip(*(tensor.view(-1).split(_BLOCK) for tensor in tensors), strict=True)
    else:
        yield tensors


def stacked(values: list[Tensor], points: int) -> Tensor:
    """Return (S * points, ...) from S tensors: each repeated for the points of its seed."""
    return torch.stack(values).repeat_interleave(points, 0)
