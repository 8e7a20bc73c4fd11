"""Where in an image a network sees a class: CAM and Grad-CAM.

Zhou et al., "Learning Deep Features for Discriminative Localization", CVPR 2016, eq. 2; Selvaraju
et al., "Grad-CAM", ICCV 2017, eqs. 1 and 2.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def class_activation_maps(network: Any, images: Tensor, classes: Tensor) -> Tensor:
    """Return ``sum_k w_k^c A^k``, (B, h, w), for the classes (B,) of images (B, C, H, W).

    A^k are the last block's maps, w the rows of the linear classifier on their means.
    """
    return _weighted(network, images, classes).sum(1)


def channel_maps(network: Any, images: Tensor, classes: Tensor, channels: Tensor) -> Tensor:
    """Return single terms ``w_k^c A^k`` of the sum, (B, n, h, w), for channels (n,)."""
    return _weighted(network, images, classes)[:, channels]


def grad_cam(network: Any, images: Tensor, classes: Tensor) -> Tensor:
    """Return ``relu(sum_k alpha_k A^k)``, (B, h, w).

    alpha_k is the spatial mean of the gradient of the class's logit by A^k.
    """
    with torch.enable_grad():
        maps, logits = _run(network, images)
        chosen = logits.gather(1, classes.unsqueeze(1)).sum()
        (gradient,) = torch.autograd.grad(chosen, maps)
    weights = gradient.mean((2, 3), keepdim=True)
    return F.relu((weights * maps.detach()).sum(1))


def overlay(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Return maps (B, h, w) at the images' size (B, H, W), each stretched to 0 .. 1."""
    large = F.interpolate(maps.unsqueeze(1), size, mode="bilinear", align_corners=False).squeeze(1)
    low, high = large.amin((1, 2), keepdim=True), large.amax((1, 2), keepdim=True)
    return (large - low) / (high - low).clamp_min(1e-12)


@torch.no_grad()
def _weighted(network: Any, images: Tensor, classes: Tensor) -> Tensor:
    maps, _ = _run(network, images)
    return network.head.weight[classes][:, :, None, None] * maps


def _run(network: Any, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the last block's maps (B, K, h, w) and the logits (B, C)."""
    kept: list[Tensor] = []
    _, last = network.trunk_and_last()
    handle = last.register_forward_hook(lambda module, inputs, output: kept.append(output))
    try:
        logits = network(images)
    finally:
        handle.remove()
    return kept[0], logits
