"""Stochastic gradient descent over many tensors at once.

It computes what torch.optim.SGD does. Importing torch's optimizers takes longer than a short job
trains, so jobs that train for seconds are better off without them.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


class SGD:
    """Momentum SGD with L2 weight decay: g += wd w; m = mu m + g; w -= lr (m, or g + mu m)."""

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
        used = [i for i, p in enumerate(self.parameters) if p.grad is not None]
        parameters = [self.parameters[i] for i in used]
        steps = [p.grad for p in parameters if p.grad is not None]
        if self.weight_decay:
            torch._foreach_add_(steps, parameters, alpha=self.weight_decay)
        if self.momentum:
            buffers = [self.buffers[i] for i in used]
            torch._foreach_mul_(buffers, self.momentum)
            torch._foreach_add_(buffers, steps)
            if self.nesterov:
                torch._foreach_add_(steps, buffers, alpha=self.momentum)
            else:
                steps = buffers
        torch._foreach_add_(parameters, steps, alpha=-learning_rate)
        for parameter in self.parameters:
            parameter.grad = None
