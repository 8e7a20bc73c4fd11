"""Sets of classes that hold the true one with a wanted probability, for long tails.

Scores are low where a class fits; a set is ``{c: s_c <= q_c}`` with quantiles q of the true
classes' scores on held-out samples. Ding et al., "Class-Conditional Conformal Prediction with Many
Classes", NeurIPS 2023 (classwise, clustered), and arXiv 2507.06867, 2025 (prevalence-adjusted
scores, interpolated quantiles).

* ``standard``: one q for all; the promise is for held-out samples as they come.
* ``balanced``: one q, each class of the held-out samples weighing the same (weighted conformal
  prediction under label shift, Podkopaev and Ramdas, UAI 2021): for the mean over classes.
* ``classwise``: a q for each class, infinite where a class has too few samples.
* ``clustered``: a q for each cluster of classes with like scores.
* ``prevalence``: one q on ``-p_c / pi_c``, pi the training prior.
* ``interpolated``: ``share q_c + (1 - share) q``, an infinite q_c counting as 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ltpipe.utils.errors import InputError

RULES = ("standard", "balanced", "classwise", "clustered", "prevalence", "interpolated")
SET_METRICS = ("coverage", "macro_coverage", "covered_below_half", "set_size")
_LEVELS = (0.5, 0.6, 0.7, 0.8, 0.9)


def scores_of(probabilities: np.ndarray, rule: str, class_counts: Sequence[int]) -> np.ndarray:
    """Return the scores (N, C) that a rule compares: ``1 - p``, or ``-p / pi``."""
    if rule != "prevalence":
        return 1 - probabilities
    prior = np.asarray(class_counts, np.float64) / np.sum(class_counts)
    return -probabilities / np.maximum(prior, 1e-12)


def quantile(scores: np.ndarray, miss: float) -> float:
    """Return the k-th smallest score, ``k = ceil((n + 1) (1 - miss))``; infinity where k > n."""
    place = math.ceil((len(scores) + 1) * (1 - miss) - 1e-9)
    return float(np.sort(scores)[place - 1]) if place <= len(scores) else math.inf


def weighted_quantile(scores: np.ndarray, weights: np.ndarray, miss: float) -> float:
    """Return the smallest score up to which a share 1 - miss of the weight lies, or infinity.

    One more sample, of the mean weight, stands at infinity for the one that is predicted.
    """
    order = np.argsort(scores, kind="stable")
    shares = np.cumsum(weights[order]) / (weights.sum() + weights.mean())
    place = int(np.searchsorted(shares, 1 - miss - 1e-9))
    return float(scores[order][place]) if place < len(scores) else math.inf


def thresholds(
    probabilities: np.ndarray,
    labels: np.ndarray,
    class_counts: Sequence[int],
    coverage: float,
    rule: str,
    *,
    share: float = 0.9,
    seed: int = 0,
) -> np.ndarray:
    """Return q (C,) of held-out samples, for the scores of `scores_of`.

    Args:
        probabilities: (N, C) of the held-out samples.
        labels: (N,) their classes.
        class_counts: (C,) training samples.
        coverage: the wanted probability that a set holds the true class.
        rule: one of RULES.
        share: how far `interpolated` goes from the one q to the classes' own.
        seed: of the draw of `clustered`.

    Raises:
        InputError: no samples, a coverage that is no probability, an unknown rule.
    """
    if rule not in RULES:
        raise InputError(f"unknown rule {rule!r}: one of {', '.join(RULES)}")
    if not 0 < coverage < 1:
        raise InputError(f"the coverage is {coverage:g}: it must lie between 0 and 1")
    if not len(labels):
        raise InputError("sets need held-out samples to take their quantiles from")
    classes, miss = probabilities.shape[1], 1 - coverage
    own = scores_of(probabilities, rule, class_counts)[np.arange(len(labels)), labels]
    if rule == "balanced":
        weights = 1 / np.bincount(labels, minlength=classes)[labels]
        return np.full(classes, weighted_quantile(own, weights, miss))
    common = quantile(own, miss)
    if rule in ("standard", "prevalence"):
        return np.full(classes, common)
    if rule == "clustered":
        return _clustered(own, labels, classes, miss, seed)
    by_class = np.array([quantile(own[labels == c], miss) for c in range(classes)])
    if rule == "classwise":
        return by_class
    if math.isinf(common):
        return np.full(classes, math.inf)
    return share * np.where(np.isinf(by_class), 1.0, by_class) + (1 - share) * common


def members(
    probabilities: np.ndarray, limits: np.ndarray, class_counts: Sequence[int], rule: str
) -> np.ndarray:
    """Return which classes are in each sample's set, bool (N, C)."""
    return scores_of(probabilities, rule, class_counts) <= limits


def set_metrics(sets: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Return what sets bool (N, C) are worth for samples of the classes `labels`.

    coverage (share of samples whose set holds the true class), macro_coverage (the mean over
    classes), covered_below_half (share of classes covered less than half the time), set_size.
    """
    hit = sets[np.arange(len(labels)), labels]
    counts = np.bincount(labels, minlength=sets.shape[1])
    hits = np.bincount(labels, weights=hit, minlength=sets.shape[1])
    by_class = hits[counts > 0] / counts[counts > 0]
    return {
        "coverage": float(hit.mean()),
        "macro_coverage": float(by_class.mean()),
        "covered_below_half": float((by_class < 0.5).mean()),
        "set_size": float(sets.sum(1).mean()),
    }


def cluster_plan(classes: int, smallest: int) -> tuple[int, int]:
    """Return how many of a class's samples take part in clustering, and how many clusters."""
    part = int(smallest * classes / (75 + classes))
    return part, part // 2


def _clustered(
    own: np.ndarray, labels: np.ndarray, classes: int, miss: float, seed: int
) -> np.ndarray:
    """Return q (C,) by clusters of classes; see the released code's rules in the module's papers.

    Classes with too few samples for a quantile of their own, and all where clusters can't be told,
    take the one q of all samples.
    """
    counts = np.bincount(labels, minlength=classes)
    needed = math.ceil(1 / miss - 1 - 1e-9)
    smallest = max(int(counts[counts > 0].min()), needed)
    part, clusters = cluster_plan(int((counts >= smallest).sum()), smallest)
    stream = np.random.default_rng(seed)
    clustering = stream.random(len(labels)) < part / smallest
    inside = np.bincount(labels[clustering], minlength=classes)
    chosen = np.flatnonzero(inside >= needed)
    rest, rest_labels = own[~clustering], labels[~clustering]
    if clusters <= 1 or len(chosen) <= clusters:
        return np.full(classes, quantile(own, miss))
    from sklearn.cluster import KMeans

    embedded = np.array([np.quantile(own[clustering & (labels == c)], _LEVELS) for c in chosen])
    means = KMeans(clusters, n_init=10, random_state=0)
    groups = means.fit_predict(embedded, sample_weight=np.sqrt(inside[chosen]))
    limits = np.full(classes, quantile(rest, miss))
    for group in range(clusters):
        members_of = chosen[groups == group]
        limits[members_of] = quantile(rest[np.isin(rest_labels, members_of)], miss)
    return limits
