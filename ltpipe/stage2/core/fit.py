"""The one fit loop of stage two: many small classifiers trained at once.

M models stand along the first axis of every parameter. A step is a few batched matrix products
and gradients by hand, so a sweep costs little more than its largest product, and M models fitted
together equal M models fitted alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from ltpipe.training.schedules import learning_rate
from ltpipe.utils.progress import track

Parameters = dict[str, Tensor]
# Yields inputs (G, B, D) and targets (G, B) of one epoch: G is M, or a divisor of it where each
# run of M / G models sees the same batches.
EpochBatches = Callable[[int], Iterator[tuple[Tensor, Tensor]]]

# From so many numbers on a step on the CPU is bound by passing over them, and not by calls.
_LARGE = 1 << 17


@dataclass(frozen=True)
class Recipe:
    """How models are fitted: momentum SGD with a schedule without warm-up.

    `learning_rate` and `weight_decay` are one number, or one for each point of a sweep. `factors`
    multiply the rate of the parameters that they name.
    """

    epochs: int
    batch_size: int
    learning_rate: float | tuple[float, ...]
    schedule: str
    momentum: float
    weight_decay: float | tuple[float, ...]
    factors: Mapping[str, float] = field(default_factory=dict)

    @property
    def points(self) -> int:
        """How many sweep points are fitted together."""
        swept = (self.learning_rate, self.weight_decay)
        return max((len(grid) for grid in swept if isinstance(grid, tuple)), default=1)


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
        parameters: tensors with M models along the first axis, as many for each sweep point.
        batches: the inputs and targets of each epoch.
        on_epoch: told the 0-based epoch and the parameters after each epoch.
    """
    momenta: Parameters = {}
    base = _by_model(recipe.learning_rate, parameters)
    decay = _by_model(recipe.weight_decay, parameters)
    swept = isinstance(base, Tensor) or isinstance(decay, Tensor)
    for epoch in track(range(recipe.epochs), description):
        share = learning_rate(recipe.schedule, 1.0, epoch, recipe.epochs)
        for inputs, target in batches(epoch):
            for name, gradient in model.gradients(parameters, inputs, target).items():
                value = parameters[name]
                rate = share * recipe.factors.get(name, 1.0)
                if not swept and _in_one_pass(value, gradient):
                    first = name not in momenta
                    if first:
                        momenta[name] = torch.empty_like(value)
                    # What torch.optim.SGD(fused=True) calls: one pass instead of four.
                    torch._fused_sgd_(
                        [value],
                        [gradient],
                        [momenta[name]],
                        weight_decay=decay,
                        momentum=recipe.momentum,
                        lr=base * rate,
                        dampening=0.0,
                        nesterov=False,
                        maximize=False,
                        is_first_step=first,
                    )
                    continue
                if isinstance(decay, Tensor):
                    gradient.addcmul_(value, _along(decay, value))
                else:
                    gradient.add_(value, alpha=decay)
                if name in momenta:
                    momentum = momenta[name].mul_(recipe.momentum).add_(gradient)
                else:
                    momentum = momenta[name] = gradient
                if isinstance(base, Tensor):
                    value.addcmul_(momentum, _along(base * rate, value), value=-1)
                else:
                    value.add_(momentum, alpha=-base * rate)
        if on_epoch is not None:
            on_epoch(epoch, parameters)
    return parameters


def repeated(start: Parameters, points: int, device: torch.device) -> Parameters:
    """Return parameters (points, ...) that all begin as `start` (...) does, on `device`."""
    return {
        name: value.to(device).repeat(points, *[1] * value.ndim) for name, value in start.items()
    }


def _by_model(grid: float | tuple[float, ...], parameters: Parameters) -> Any:
    """Return the one number of all models, or (M,) of them on the parameters' device."""
    if not isinstance(grid, tuple):
        return grid
    value = next(iter(parameters.values()))
    numbers = torch.tensor(grid, device=value.device)
    return numbers.repeat_interleave(len(value) // len(numbers))


def _along(numbers: Tensor, value: Tensor) -> Tensor:
    """Return (M,) numbers in a shape that goes with a parameter of M models."""
    return numbers.view(-1, *[1] * (value.ndim - 1))


def _in_one_pass(value: Tensor, gradient: Tensor) -> bool:
    return (
        value.numel() >= _LARGE
        and value.device.type == "cpu"
        and value.is_contiguous()
        and gradient.is_contiguous()
    )
