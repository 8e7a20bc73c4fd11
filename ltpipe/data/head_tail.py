"""Which classes are head and which are tail.

HRJBA: classes are sorted by training samples, a share of them from the small end is tail (eqs. 1
to 3).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ltpipe.utils.errors import InputError


def tail_classes(class_counts: Sequence[int], tail_share: float) -> np.ndarray:
    """Return (C,) bool: whether each class is tail.

    A class is head if it has at least as many samples as the smallest of the C - b largest ones,
    b = round(tail_share C); so classes of equal size at the boundary are all head, and there may be
    fewer than b tail classes.

    Raises:
        InputError: no class would be head, or none tail.
    """
    counts = np.asarray(class_counts)
    classes = len(counts)
    heads = classes - round(tail_share * classes)
    if not 0 < heads <= classes:
        raise InputError(f"tail_share {tail_share:g} leaves no head class of {classes}; lower it")
    boundary = np.sort(counts)[::-1][heads - 1]
    tail = counts < boundary
    if not tail.any():
        raise InputError(
            f"tail_share {tail_share:g} leaves no tail class of {classes}: none has fewer than "
            f"{boundary} samples; change it or the data set's imbalance"
        )
    return tail


def group_classes(class_counts: Sequence[int], tail_share: float, group: str) -> list[int]:
    """Return the classes of `group`, head or tail, in rising order; see `tail_classes`."""
    tail = tail_classes(class_counts, tail_share)
    return np.flatnonzero(tail if group == "tail" else ~tail).tolist()
