"""Learning rates by epoch."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ltpipe.utils.errors import InputError, nearest

_KINDS = ("step", "cosine", "constant")


def learning_rate(
    kind: str,
    base: float,
    epoch: int,
    epochs: int,
    *,
    warmup: int = 0,
    warmup_start: float = 0.0,
    milestones: Sequence[int] = (),
    factors: Sequence[float] = (),
) -> float:
    """Return the learning rate of the 0-based `epoch` out of `epochs`.

    During the first `warmup` epochs every kind rises as ``base * (s + (1 - s) * (epoch + 1) /
    warmup)``; s is `warmup_start`, the share of `base` where the line begins. Then
    "step" is `base` times the factor of the last milestone reached (``epoch >= milestone``,
    milestones rising): a factor is relative to `base`, not to the rate before, as in the released
    code of LDAM (Cao et al., NeurIPS 2019). "cosine" is ``base / 2 * (1 + cos(pi * epoch /
    epochs))``, with the warm-up counted as part of the curve. "constant" is `base`.

    Raises:
        InputError: unknown kind, or milestones and factors of different lengths.
    """
    if kind not in _KINDS:
        raise InputError(
            f"unknown schedule {kind!r}{nearest(kind, _KINDS)}; known: {', '.join(_KINDS)}"
        )
    if len(milestones) != len(factors):
        raise InputError(
            f"schedule has {len(milestones)} milestones but {len(factors)} factors; give one each"
        )
    if epoch < warmup:
        return base * (warmup_start * warmup + (1 - warmup_start) * (epoch + 1)) / warmup
    if kind == "cosine":
        return 0.5 * base * (1 + math.cos(math.pi * epoch / epochs))
    if kind == "step":
        steps = zip(milestones, factors, strict=True)
        reached = [factor for milestone, factor in steps if epoch >= milestone]
        return base * reached[-1] if reached else base
    return base
