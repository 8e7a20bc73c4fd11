"""Class priors of unlabelled samples, posteriors moved to them, and test sets with other priors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ltpipe.data.longtail import class_counts as long_tailed_counts
from ltpipe.utils.errors import InputError

_TINY = 1e-12


def estimated_prior(
    posteriors: np.ndarray,
    source: np.ndarray,
    *,
    pseudo_count: float = 0.0,
    tolerance: float = 1e-6,
    iterations: int = 1000,
) -> np.ndarray:
    """Return the class prior (C,) of the samples that posteriors (N, C) are of.

    Expectation maximisation: ``r_ic ~ p_ic q_c / p_s,c``, normalised over c, then ``q = mean_i
    r_i``, from q = p_s. Saerens et al., "Adjusting the Outputs of a Classifier to New a Priori
    Probabilities: A Simple Procedure", Neural Computation 2002, eqs. 2.9 and 2.10.

    Args:
        posteriors: under the prior `source`, calibrated.
        source: (C,) p_s, which sums to one; zeros are taken for a tiny share.
        pseudo_count: samples a class that are added in each step (the mode under a Dirichlet
            prior of this plus one), which keeps rare classes from vanishing.
        tolerance: the largest change of a share at which it ends.
    """
    posteriors = np.asarray(posteriors, np.float64)
    source = np.maximum(np.asarray(source, np.float64), _TINY)
    number, classes = posteriors.shape
    q = source / source.sum()
    for _ in range(iterations):
        moved = moved_posteriors(posteriors, source, q)
        new = (moved.sum(0) + pseudo_count) / (number + classes * pseudo_count)
        change = np.abs(new - q).max()
        q = new
        if change <= tolerance:
            break
    return q


def moved_posteriors(posteriors: np.ndarray, source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Return posteriors (N, C) under the prior `target` (C,) instead of `source` (C,), float64."""
    ratio = np.asarray(target, np.float64) / np.maximum(np.asarray(source, np.float64), _TINY)
    moved = np.asarray(posteriors, np.float64) * ratio
    # A sample whose every class has no share left keeps its posterior.
    total = moved.sum(1, keepdims=True)
    return np.where(total > 0, moved / np.maximum(total, np.finfo(np.float64).tiny), posteriors)


def shifted_places(
    labels: np.ndarray, class_counts: Sequence[int], ratio: float, direction: str, seed: int = 0
) -> np.ndarray:
    """Return the places (n,) of a long-tailed part of a balanced test set.

    Of the class of rank k by falling training count, ``int(M r ** (-k / (C - 1)))`` samples are
    kept ``forward``, those of rank C - 1 - k ``backward``; M is the size of the smallest test
    class. Zhang et al., "Self-Supervised Aggregation of Diverse Experts for Test-Agnostic
    Long-Tailed Recognition" (SADE), NeurIPS 2022, section 5.

    Raises:
        InputError: a class has no test sample, the ratio is below 1 or above M, or the direction
            is unknown.
    """
    classes = len(class_counts)
    available = np.bincount(labels, minlength=classes)
    largest = int(available.min())
    if largest < 1 or classes < 2:
        raise InputError("a shifted test set needs samples of at least two classes, all of them")
    if not 1 <= ratio <= largest:
        raise InputError(f"the ratio is {ratio:g}: it must lie between 1 and {largest}")
    if direction not in ("forward", "backward"):
        raise InputError(f"direction {direction!r}: forward or backward")
    sizes = long_tailed_counts(classes, largest, ratio)
    ranks = np.argsort(-np.asarray(class_counts), kind="stable")
    stream = np.random.RandomState(seed)
    wanted = dict(zip(ranks, sizes if direction == "forward" else sizes[::-1], strict=True))
    kept = [
        stream.permutation(np.flatnonzero(labels == label))[: wanted[label]]
        for label in range(classes)
    ]
    return np.sort(np.concatenate(kept))
