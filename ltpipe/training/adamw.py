"""AdamW over many tensors at once; see `ltpipe.training.sgd` for why it is not torch's."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


class AdamW:
    """Adam with decoupled weight decay, as torch.optim.AdamW computes it.

    Loshchilov and Hutter, "Decoupled Weight Decay Regularization", ICLR 2019. A parameter that had
    no gradient in a step is left as it is, its averages too.
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
        # Averages, averages of squares, and on the host the number of steps: all that is resumed.
        count = torch.zeros((), dtype=torch.int64)
        self.buffers = [torch.zeros_like(p) for p in 2 * self.parameters] + [count]

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        """Take one step along the parameters' gradients, then drop the gradients."""
        number = len(self.parameters)
        used = [i for i, p in enumerate(self.parameters) if p.grad is not None]
        parameters = [self.parameters[i] for i in used]
        means = [self.buffers[i] for i in used]
        squares = [self.buffers[number + i] for i in used]
        gradients = [p.grad for p in parameters if p.grad is not None]
        count = self.buffers[-1].add_(1).item()
        first, second = self.betas
        torch._foreach_mul_(parameters, 1 - learning_rate * self.weight_decay)
        torch._foreach_lerp_(means, gradients, 1 - first)
        torch._foreach_mul_(squares, second)
        torch._foreach_addcmul_(squares, gradients, gradients, value=1 - second)
        roots = torch._foreach_sqrt(squares)
        torch._foreach_div_(roots, (1 - second**count) ** 0.5)
        torch._foreach_add_(roots, self.epsilon)
        torch._foreach_addcdiv_(parameters, means, roots, value=-learning_rate / (1 - first**count))
        for parameter in self.parameters:
            parameter.grad = None
