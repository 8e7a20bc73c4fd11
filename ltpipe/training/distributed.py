"""Several processes that train one network: each takes its share of every batch.

Started by torchrun, on one host or several. Together they compute what one process computes on
the joint batch: losses are normalised over all shares, BatchNorm takes its statistics from all,
and DistributedDataParallel averages the gradients. Augmentation and mixup draw for each share
apart. With one process everything here steps aside.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ltpipe.losses.base import Loss, at_least_float32
from ltpipe.utils.errors import InputError


def is_launched() -> bool:
    """Return whether torchrun started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


@contextlib.contextmanager
def joined(device: torch.device) -> Iterator[None]:
    """Meet the other processes, over nccl on GPUs and gloo on CPUs, and part at the end."""
    if not is_launched():
        yield
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def size() -> int:
    """Return the number of processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return this process's number among them."""
    return dist.get_rank() if size() > 1 else 0


def share(order: Tensor, batch_size: int) -> tuple[Tensor, int]:
    """Return this process's part of an epoch's order, and its part of a batch's size.

    Each batch of `batch_size` samples is cut into as many equal parts as there are processes. A
    last batch that is short is cut so that parts differ by one at most, or left out where it has
    fewer samples than there are processes.

    Raises:
        InputError: the batch size is no multiple of the number of processes.
    """
    parts = size()
    if parts == 1:
        return order, batch_size
    if batch_size % parts:
        raise InputError(f"batch_size {batch_size} is no multiple of the {parts} processes")
    mine = [
        batch.tensor_split(parts)[rank()]
        for batch in order.split(batch_size)
        if len(batch) >= parts
    ]
    return torch.cat(mine), batch_size // parts


def wrap(network: nn.Module, device: torch.device) -> nn.Module:
    """Return `network` for training together: synchronised BatchNorm, averaged gradients."""
    if size() == 1:
        return network
    if device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(network)
    else:
        synchronise_batchnorm(network)
    devices = [device] if device.type == "cuda" else None
    return DistributedDataParallel(network, device_ids=devices, broadcast_buffers=False)


def joint_loss(loss: Loss, logits: Tensor, target: Tensor) -> Tensor:
    """Return a scalar whose average over the processes is the loss of the joint batch."""
    if size() == 1:
        return loss(logits, target)
    total, weight = loss.sums(logits, target)
    return total * (size() / all_sum(weight))


def all_sum(values: Tensor) -> Tensor:
    """Return the sum of every process's `values`, without a gradient."""
    total = values.detach().clone()
    if size() > 1:
        dist.all_reduce(total)
    return total


class _AllSum(torch.autograd.Function):
    """The sum over processes; what flows back is the sum of what flows back to each."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return all_sum(values)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return all_sum(gradient)


class SyncedBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm over the joint batch of all processes; torch's own runs on GPUs only."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        values = at_least_float32(input)
        count = values.new_full((1,), values.numel() / values.shape[1])
        moments = torch.cat([values.sum((0, 2, 3)), values.square().sum((0, 2, 3)), count])
        sums, squares, count = _AllSum.apply(moments).split(
            [self.num_features, self.num_features, 1]
        )
        mean = sums / count
        variance = (squares / count - mean.square()).clamp_min(0)
        if self.running_mean is not None and self.running_var is not None:
            unbiased = variance * (count / (count - 1))
            self.running_mean.lerp_(mean.detach(), self.momentum or 0.0)
            self.running_var.lerp_(unbiased.detach(), self.momentum or 0.0)
            if self.num_batches_tracked is not None:
                self.num_batches_tracked.add_(1)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        shift = self.bias - mean * scale
        result = values * scale.view(1, -1, 1, 1) + shift.view(1, -1, 1, 1)
        return result.to(input.dtype)


def synchronise_batchnorm(network: nn.Module) -> None:
    """Replace every BatchNorm2d of `network` by one over the joint batch; the state stays."""
    for name, module in list(network.named_modules()):
        if type(module) is nn.BatchNorm2d:
            synced = SyncedBatchNorm2d(module.num_features, module.eps, module.momentum)
            synced.train(module.training)
            for key in ("weight", "bias"):
                setattr(synced, key, getattr(module, key))
            for key in ("running_mean", "running_var", "num_batches_tracked"):
                setattr(synced, key, getattr(module, key))
            network.set_submodule(name, synced)
