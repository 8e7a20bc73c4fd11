"""Mixup: Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ltpipe.utils.errors import InputError


def mixup(images: Tensor, generator: torch.Generator, alpha: float) -> tuple[Tensor, Tensor, float]:
    """Mix each image of a float batch (B, ...) with another of the same batch.

    Returns ``lam * images + (1 - lam) * images[permutation]``, the permutation (B,) on the
    images' device, and lam ~ Beta(alpha, alpha), one for the batch. Both are drawn from
    `generator`, a CPU generator, so no value has to come back from the device.

    Raises:
        InputError: `alpha` is not positive.
    """
    if not alpha > 0:
        raise InputError(f"mixup alpha must be greater than 0, not {alpha:g}")
    # torch's Beta distribution accepts no generator.
    seed = int(torch.randint(2**62, (), generator=generator))
    lam = float(np.random.default_rng(seed).beta(alpha, alpha))
    permutation = torch.randperm(len(images), generator=generator)
    permutation = permutation.to(images.device, non_blocking=True)
    return torch.lerp(images[permutation], images, lam), permutation, lam


def mixup_loss(
    loss: Callable[[Tensor, Tensor], Tensor],
    logits: Tensor,
    target: Tensor,
    permutation: Tensor,
    lam: float,
) -> Tensor:
    """Return ``lam * loss(logits, target) + (1 - lam) * loss(logits, target[permutation])``."""
    return lam * loss(logits, target) + (1 - lam) * loss(logits, target[permutation])
