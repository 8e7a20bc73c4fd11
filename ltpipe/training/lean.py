"""Training steps of fewer operators, with equal numbers.

Small networks are bound by how many operators a step dispatches, each a kernel to start on a GPU.
Here BatchNorm counts its batches on the host, gradients are taken instead of accumulated, and in
bfloat16 all weights are cast once a step by one operator; autocast does it one by one, forwards
and backwards.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ltpipe.training import distributed

# What autocast computes in lower precision by weights of the module's own.
_PRODUCTS = (nn.Linear, nn.Conv1d, nn.Conv2d)


class Optimizer(Protocol):
    """What moves parameters along their gradients."""

    parameters: list[Tensor]

    def step(self, learning_rate: float) -> None:
        """Take one step, then drop the gradients."""
        ...


class Steps:
    """The steps of training a network under an optimizer.

    With several processes, or where `compiled` already joins operators, they are the plain ones.

    Args:
        network: what is trained.
        optimizer: moves the network's parameters.
        dtype: what autocast computes in.
        compiled: whether the network's passes are compiled.
        kept: modules whose weights keep their type, because the network computes by what it is.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: Optimizer,
        dtype: torch.dtype,
        compiled: bool,
        kept: Sequence[nn.Module] = (),
    ) -> None:
        self._network = network
        self._kept = kept
        self._optimizer = optimizer
        self._is_plain = compiled or distributed.size() > 1
        # By parameter: its copy in lower precision, which takes its place in an epoch.
        self._copies: dict[Tensor, nn.Parameter] = {}
        if dtype is not torch.float32 and not self._is_plain:
            self._copies = {
                parameter: nn.Parameter(parameter.detach().to(dtype), parameter.requires_grad)
                for _, _, parameter in self._cast()
            }
        self._gradients: dict[Tensor, Tensor] = {}
        self._in_epoch = False

    @contextlib.contextmanager
    def epoch(self) -> Iterator[None]:
        """Take lean steps for the block; outside of it the network is as anyone expects it."""
        if self._is_plain:
            yield
            return
        cast = [place for place in self._cast() if place[2] in self._copies]
        with _counting_on_the_host(self._network):
            self._refresh()
            for module, name, parameter in cast:
                module._parameters[name] = self._copies[parameter]
            self._in_epoch = True
            try:
                yield
            finally:
                self._in_epoch = False
                for module, name, parameter in cast:
                    module._parameters[name] = parameter

    def descend(self, value: Tensor, rate: float) -> None:
        """Move the parameters against the gradient of `value`."""
        if self._is_plain:
            value.backward()
            self._optimizer.step(rate)
            return
        parameters = self._optimizer.parameters
        copies = self._copies if self._in_epoch else {}
        leaves = [copies.get(parameter, parameter) for parameter in parameters]
        gradients = list(torch.autograd.grad(value, leaves, allow_unused=True))
        low = [
            place
            for place, (parameter, gradient) in enumerate(zip(parameters, gradients, strict=True))
            if gradient is not None and gradient.dtype is not parameter.dtype
        ]
        if low:
            wide = [self._wide(parameters[place]) for place in low]
            torch._foreach_copy_(wide, [gradients[place] for place in low])
            for place, gradient in zip(low, wide, strict=True):
                gradients[place] = gradient
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        self._optimizer.step(rate)
        if copies:
            self._refresh()

    def _wide(self, parameter: Tensor) -> Tensor:
        """Return where the gradient of `parameter` is widened to; the optimizer lets go of it."""
        if parameter not in self._gradients:
            self._gradients[parameter] = torch.empty_like(parameter)
        return self._gradients[parameter]

    @torch.no_grad()
    def _refresh(self) -> None:
        trained = {p: copy for p, copy in self._copies.items() if p.requires_grad}
        if trained:
            torch._foreach_copy_(list(trained.values()), list(trained))

    def _cast(self) -> Iterator[tuple[nn.Module, str, nn.Parameter]]:
        """Yield each parameter that autocast would cast, and where it is."""
        for module in self._network.modules():
            if isinstance(module, _PRODUCTS) and all(module is not one for one in self._kept):
                for name, parameter in module._parameters.items():
                    if parameter is not None:
                        yield module, name, parameter


@contextlib.contextmanager
def _counting_on_the_host(network: nn.Module) -> Iterator[None]:
    """Let every BatchNorm of `network` count its batches in Python, and add them at the end."""
    with contextlib.ExitStack() as stack:
        for module in network.modules():
            if isinstance(module, _BatchNorm) and module.momentum is not None:
                stack.enter_context(_counted(module))
        yield


@contextlib.contextmanager
def _counted(module: _BatchNorm) -> Iterator[None]:
    number = module.num_batches_tracked
    if number is None:
        yield
        return
    seen: Counter[str] = Counter()

    def count(module: nn.Module, inputs: object) -> None:
        seen["batches"] += module.training

    handle = module.register_forward_pre_hook(count)
    module._buffers["num_batches_tracked"] = None
    try:
        yield
    finally:
        handle.remove()
        module._buffers["num_batches_tracked"] = number
        number += seen["batches"]
