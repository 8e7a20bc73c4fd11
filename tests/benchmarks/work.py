"""How much arithmetic and how much memory traffic one item of a hot loop takes.

A multiplication and its addition are two operations. Bytes count what has to pass between
processor and memory where nothing stays in a cache.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

FLOAT = 4


def forward_flops(network: nn.Module, shape: tuple[int, int, int]) -> float:
    """Return 2 x multiply-adds of convolutions and linear maps on one image (C, H, W)."""
    total = 0

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        weight: Tensor = module.weight  # type: ignore[assignment]
        # Each of a map's numbers is a sum over one filter's weights.
        total += 2 * output[0].numel() * weight[0].numel()

    hooks = [
        module.register_forward_hook(count)
        for module in network.modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    ]
    training = network.training
    with torch.no_grad():
        network.eval()(torch.zeros(1, *shape))
    network.train(training)
    for hook in hooks:
        hook.remove()
    return float(total)


def training_flops(network: nn.Module, shape: tuple[int, int, int]) -> float:
    """Return what a training image takes: forward, and as much for each of two gradients."""
    return 3 * forward_flops(network, shape)


def linear_step_flops(batch: int, classes: int, dimension: int, models: int = 1) -> float:
    """Return 2 products of a stacked linear step: logits, and the gradient of the weight."""
    return 2.0 * 2 * batch * classes * dimension * models


def linear_step_bytes(batch: int, classes: int, dimension: int, models: int = 1) -> float:
    """Return the least traffic of momentum SGD on a (C, D) weight.

    The weight is read for the logits, the gradient is written once and read once, weight and
    momentum are read and written: 7 passes. The batch is gathered (read, written) and read by both
    products: 4 passes.
    """
    return FLOAT * models * (7 * classes * dimension + 4 * batch * dimension)


def unfused_step_bytes(batch: int, classes: int, dimension: int) -> float:
    """Return the traffic where weight decay, momentum and the step each pass over all weights.

    ``g += wd w`` moves 3 passes, ``m *= mu`` 2, ``m += g`` 3, ``w -= lr m`` 3; with the logits'
    read and the gradient's write 13, instead of 7.
    """
    return linear_step_bytes(batch, classes, dimension) + FLOAT * 6 * classes * dimension


def flow_step_flops(
    batch: int, dimension: int, hidden: int, clusters: int, layers: int = 2
) -> float:
    """Return 3 x the products of a masked flow: its three maps a layer, and the mixture's.

    The maps are D x H, H x H and H x 2 D, masked weights counted, since products run over them.
    """
    maps = layers * (dimension * hidden + hidden * hidden + 2 * hidden * dimension)
    return 3.0 * 2 * batch * (maps + dimension * clusters)


def clustering_bytes(batch: int, classes: int, dimension: int) -> float:
    """Return the least traffic of a clustering step.

    Features are read for the sums and for the distances, centres are read and written.
    """
    return FLOAT * (2 * batch * dimension + 2 * classes * dimension)


def crop_bytes(size: int, channels: int = 3) -> float:
    """Return what a cropped image takes: its bytes are read and written."""
    return 2.0 * size * size * channels


def gather_bytes(dimension: int) -> float:
    """Return what a gathered row of float32 takes: read and written."""
    return 2.0 * FLOAT * dimension
