"""Momentum SGD and AdamW by torch's own functions, without torch's optimizer classes.

The first optimizer object of a process imports torch's compiler, 1.7 CPU-seconds of its life; the
functions that do the arithmetic are there with torch. A stage-two job of two seconds notices
(tests/benchmarks/run.py --only optimizer), so what is kept between steps is kept here.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd


class SGD:
    """torch.optim.SGD with a learning rate given at each step.

    Attributes:
        buffers: the momentum of each parameter, zeros before the first step; none without momentum.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        *,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ) -> None:
        self.parameters = [p for p in parameters if p.requires_grad]
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.nesterov = nesterov
        self.buffers = [torch.zeros_like(p) for p in self.parameters] if momentum else []

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        """Take one step along the parameters' gradients, then drop the gradients."""
        used, gradients = _with_gradients(self.parameters)
        sgd(
            [self.parameters[i] for i in used],
            gradients,
            [self.buffers[i] if self.buffers else None for i in used],
            foreach=True,
            weight_decay=self.weight_decay,
            momentum=self.momentum,
            lr=learning_rate,
            dampening=0.0,
            nesterov=self.nesterov,
            maximize=False,
        )
        _drop_gradients(self.parameters)


class AdamW:
    """torch.optim.AdamW with a learning rate given at each step.

    Loshchilov and Hutter, "Decoupled Weight Decay Regularization", ICLR 2019.

    Attributes:
        buffers: of each parameter the running mean of gradients, then of each that of their
            squares, then the number of steps that each has taken (parameters,) on the CPU.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        epsilon: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        self.parameters = [p for p in parameters if p.requires_grad]
        self.betas = betas
        self.epsilon = epsilon
        self.weight_decay = weight_decay
        self._means = [torch.zeros_like(p) for p in self.parameters]
        self._squares = [torch.zeros_like(p) for p in self.parameters]
        steps = torch.zeros(len(self.parameters))
        self._steps = steps.unbind()
        self.buffers = [*self._means, *self._squares, steps]

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        """Take one step along the parameters' gradients, then drop the gradients."""
        used, gradients = _with_gradients(self.parameters)
        adamw(
            [self.parameters[i] for i in used],
            gradients,
            [self._means[i] for i in used],
            [self._squares[i] for i in used],
            [],
            [self._steps[i] for i in used],
            foreach=True,
            amsgrad=False,
            beta1=self.betas[0],
            beta2=self.betas[1],
            lr=learning_rate,
            weight_decay=self.weight_decay,
            eps=self.epsilon,
            maximize=False,
        )
        _drop_gradients(self.parameters)


def _with_gradients(parameters: list[Tensor]) -> tuple[list[int], list[Tensor]]:
    """Return the places of the parameters that have gradients, and the gradients."""
    pairs = [(i, p.grad) for i, p in enumerate(parameters) if p.grad is not None]
    return [i for i, _ in pairs], [gradient for _, gradient in pairs]


def _drop_gradients(parameters: list[Tensor]) -> None:
    for parameter in parameters:
        parameter.grad = None
