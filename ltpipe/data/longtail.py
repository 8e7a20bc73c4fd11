"""Long-tailed class profiles and the seeded draw of a subset that follows one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from ltpipe.utils.errors import InputError, nearest

PROFILES = ("exp", "step", "pareto")
ROUNDINGS = ("floor", "nearest")


def class_counts(
    num_classes: int,
    max_count: int,
    imbalance: float,
    profile: str = "exp",
    rounding: str = "floor",
) -> list[int]:
    """Return how many training images each class keeps, from the head class to the tail class.

    Profiles, with c = 0 .. C-1, before rounding to an integer:

    * ``exp``: n_c = max_count * (1 / imbalance) ** (c / (C - 1)) (Cui et al., CVPR 2019; Cao et
      al., NeurIPS 2019), computed in double precision as one power, as the public CIFAR-LT
      builders do, so that the counts agree with theirs image by image.
    * ``step``: the first C // 2 classes have max_count, the others max_count / imbalance (Buda et
      al., Neural Networks 2018).
    * ``pareto``: the rank-size law of a Pareto distribution, n_c = max_count * (c + 1) ** (-s)
      with s = ln(imbalance) / ln(C), so that the last class has max_count / imbalance.

    Args:
        num_classes: C, at least 2.
        max_count: images of the largest class.
        imbalance: largest count / smallest count, between 1 and max_count.
        profile: ``exp``, ``step`` or ``pareto``.
        rounding: ``floor``, as the public builders truncate, or ``nearest``.

    Raises:
        InputError: a value outside its range or an unknown profile.
    """
    if num_classes < 2:
        raise InputError(f"num_classes is {num_classes}: a long-tailed profile needs at least 2")
    if max_count < 1:
        raise InputError(f"max_count is {max_count}: the largest class needs at least 1 image")
    if not 1 <= imbalance <= max_count:
        raise InputError(
            f"imbalance is {imbalance}: it must lie between 1 and max_count = {max_count}, "
            "or the smallest class would be empty"
        )
    factor = 1.0 / imbalance
    if profile == "exp":
        shares = [factor ** (c / (num_classes - 1)) for c in range(num_classes)]
    elif profile == "step":
        head = num_classes // 2
        shares = [1.0] * head + [factor] * (num_classes - head)
    elif profile == "pareto":
        exponent = math.log(imbalance) / math.log(num_classes)
        # The last share is 1 / imbalance but for rounding, which truncation must not see.
        shares = [(c + 1) ** -exponent * (1 + 1e-12) for c in range(num_classes)]
    else:
        raise InputError(
            f"unknown profile {profile!r}{nearest(profile, PROFILES)}: one of {', '.join(PROFILES)}"
        )
    if rounding == "nearest":
        return [max(1, round(max_count * share)) for share in shares]
    if rounding != "floor":
        raise InputError(
            f"unknown rounding {rounding!r}{nearest(rounding, ROUNDINGS)}: floor or nearest"
        )
    # 49 * (1 / 49) is a hair below 1 in double precision.
    return [max(1, int(max_count * share)) for share in shares]


def draw_subset(labels: np.ndarray, counts: Sequence[int], seed: int) -> np.ndarray:
    """Choose `counts[c]` samples of each class c, as the LDAM-DRW data sets do.

    One legacy NumPy stream, seeded once: for each class in order the positions of its samples
    are shuffled in place and the first `counts[c]` are kept (Cao et al., NeurIPS 2019). The same
    seed gives the same images as that code.

    Args:
        labels: (N,) integers in 0 .. C-1.
        counts: C wanted numbers.
        seed: seed of the stream, 0 .. 2**32 - 1.

    Returns:
        (sum(counts),) int64 positions in `labels`, class by class.

    Raises:
        InputError: a class is asked for no sample or has fewer than asked.
    """
    stream = np.random.RandomState(seed)
    chosen = []
    for label, count in enumerate(counts):
        positions = np.flatnonzero(labels == label)
        if count < 1:
            raise InputError(f"class {label} is to have {count} samples: every class needs one")
        if len(positions) < count:
            raise InputError(
                f"class {label} has {len(positions)} training samples but {count} are asked for: "
                "lower max_count"
            )
        stream.shuffle(positions)
        chosen.append(positions[:count])
    return np.concatenate(chosen).astype(np.int64)


def split_validation(
    labels: np.ndarray, seed: int, fraction: float
) -> tuple[np.ndarray, np.ndarray]:
    """Split off a random `fraction` of each class: max(1, floor(fraction * n_c)) samples.

    A class's last sample stays in training, so a class of one gives none away.

    Returns:
        (train positions, validation positions), each (n,) int64 and ascending.

    Raises:
        InputError: `fraction` is not between 0 and 1 (both excluded).
    """
    return _split(labels, seed, fraction, lambda n: min(max(1, int(fraction * n)), n - 1))


def split_test(labels: np.ndarray, seed: int, fraction: float) -> tuple[np.ndarray, np.ndarray]:
    """Split a test set off: floor(fraction * n_c) of each class, but three where they are there.

    Half of a class stays in training at least. As `split_validation` in all else.
    """
    return _split(labels, seed, fraction, lambda n: max(int(fraction * n), min(3, n // 2)))


def _split(
    labels: np.ndarray, seed: int, fraction: float, share: Callable[[int], int]
) -> tuple[np.ndarray, np.ndarray]:
    if not 0 < fraction < 1:
        raise InputError(f"the split fraction is {fraction}: it must lie between 0 and 1")
    stream = np.random.RandomState(seed)
    taken = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        positions = stream.permutation(np.flatnonzero(labels == label))
        taken[positions[: share(len(positions))]] = True
    return np.flatnonzero(~taken), np.flatnonzero(taken)
