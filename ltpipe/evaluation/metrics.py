"""What is measured on the test set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.metrics import f1_score, matthews_corrcoef, normalized_mutual_info_score

from ltpipe.utils.errors import InputError, nearest

GROUPS = ("many", "medium", "few")
_RULES = ("thresholds", "ranks")
_BINS = 15


def evaluate(
    scores: np.ndarray,
    labels: np.ndarray,
    class_counts: Sequence[int],
    *,
    groups: str = "thresholds",
    thresholds: tuple[int, int] = (100, 20),
) -> dict[str, Any]:
    """Return every metric of one set of predictions; values are fractions, not percent.

    Args:
        scores: (N, C) probabilities, or any scores: rows that are no probabilities go through a
            softmax for `ece`, `nll` and `auc`.
        labels: (N,) class indices.
        class_counts: (C,) training images of each class.
        groups: how classes are called many-, medium- and few-shot: `thresholds` (more than the
            first, fewer than the second of `thresholds`; the rule of OLTR, Liu et al., CVPR 2019)
            or `ranks` (thirds of the ranking by training count).

    Returns:
        accuracy; many, medium, few (means of the class accuracies, NaN for an empty group);
        head_tail_gap (many less few);
        per_class (a list, NaN for a class without test samples); balanced_accuracy, macro_f1,
        mcc, nmi (arithmetic normalisation); auc (macro one-vs-rest, NaN where a class has no or
        only positives); ece (15 bins of equal width, Guo et al., ICML 2017); nll; num_samples;
        groups (the rule in words).

    Raises:
        InputError: shapes don't fit, a score is NaN or infinite, a label is out of range.
    """
    scores, labels = np.asarray(scores), np.asarray(labels)
    _check(scores, labels, class_counts)
    classes = scores.shape[1]
    probabilities = as_probabilities(scores)
    predicted = scores.argmax(1)
    per_class = per_class_accuracy(predicted, labels, classes)
    shots = np.array(group_of_classes(class_counts, groups, thresholds))
    by_group = {name: _mean(per_class[shots == name]) for name in GROUPS}
    return {
        "accuracy": float((predicted == labels).mean()),
        **by_group,
        "head_tail_gap": by_group["many"] - by_group["few"],
        "per_class": per_class.tolist(),
        "balanced_accuracy": _mean(per_class),
        "macro_f1": float(
            f1_score(labels, predicted, labels=np.unique(labels), average="macro", zero_division=0)
        ),
        "mcc": float(matthews_corrcoef(labels, predicted)),
        "nmi": float(normalized_mutual_info_score(labels, predicted)),
        "auc": _macro_auc(probabilities, labels),
        "ece": _expected_calibration_error(probabilities, labels),
        "nll": _negative_log_likelihood(probabilities, labels),
        "num_samples": len(labels),
        "groups": describe_groups(classes, groups, thresholds),
    }


def _check(scores: np.ndarray, labels: np.ndarray, class_counts: Sequence[int]) -> None:
    if scores.ndim != 2 or labels.shape != scores.shape[:1] or not len(labels):
        raise InputError(
            f"scores {scores.shape} and labels {labels.shape} do not fit: (N, C) and (N,), N > 0"
        )
    if len(class_counts) != scores.shape[1]:
        raise InputError(
            f"scores have {scores.shape[1]} classes but there are {len(class_counts)} class counts"
        )
    if labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() >= scores.shape[1]:
        raise InputError(f"labels must be whole numbers from 0 to {scores.shape[1] - 1}")
    if not np.isfinite(scores).all():
        raise InputError("scores hold NaN or infinite values")


def _mean(values: np.ndarray) -> float:
    present = values[~np.isnan(values)]
    return float(present.mean()) if len(present) else float("nan")


def group_of_classes(
    class_counts: Sequence[int], groups: str, thresholds: tuple[int, int] = (100, 20)
) -> list[str]:
    """Return `many`, `medium` or `few` for each class; the rules are those of `evaluate`."""
    if groups not in _RULES:
        raise InputError(f"unknown groups {groups!r}{nearest(groups, _RULES)}; known: {_RULES}")
    counts = np.asarray(class_counts)
    names = np.full(len(counts), "medium", dtype=object)
    if groups == "thresholds":
        names[counts > thresholds[0]] = "many"
        names[counts < thresholds[1]] = "few"
    else:
        order = np.argsort(-counts, kind="stable")
        third = len(counts) // 3
        names[order[:third]] = "many"
        names[order[len(counts) - third :]] = "few"
    return names.tolist()


def describe_groups(classes: int, groups: str, thresholds: tuple[int, int] = (100, 20)) -> str:
    """Return the rule of the shot groups in words, for tables and reports."""
    if groups == "thresholds":
        high, low = thresholds
        return f"many: >{high}, medium: {low}-{high}, few: <{low} training images"
    third = classes // 3
    return (
        f"many/medium/few: ranks 1-{third}/{third + 1}-{classes - third}/"
        f"{classes - third + 1}-{classes} by training count"
    )


def per_class_accuracy(predicted: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """Return (C,) accuracies; NaN for a class without test samples."""
    totals = np.bincount(labels, minlength=classes)
    hits = np.bincount(labels[predicted == labels], minlength=classes)
    return np.where(totals > 0, hits / np.maximum(totals, 1), np.nan)


def as_probabilities(scores: np.ndarray) -> np.ndarray:
    """Return float64 probabilities (N, C): `scores` as they are, or their softmax."""
    scores = scores.astype(np.float64)
    if (scores >= 0).all() and np.allclose(scores.sum(1), 1, atol=1e-4):
        return scores
    shifted = np.exp(scores - scores.max(1, keepdims=True))
    return shifted / shifted.sum(1, keepdims=True)


def _macro_auc(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean over classes of the one-vs-rest area under the ROC curve.

    The area is the Mann-Whitney statistic of the column's ranks, ties counted half.
    """
    samples, classes = probabilities.shape
    positives = np.bincount(labels, minlength=classes)
    if (positives == 0).any() or (positives == samples).any():
        return float("nan")
    areas = np.empty(classes)
    for index in range(classes):
        column = probabilities[:, index]
        _, inverse, counts = np.unique(column, return_inverse=True, return_counts=True)
        ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
        n = positives[index]
        wins = ranks[labels == index].sum() - n * (n + 1) / 2
        areas[index] = wins / (n * (samples - n))
    return float(areas.mean())


def reliability(
    probabilities: np.ndarray, labels: np.ndarray, bins: int = _BINS
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (share of samples, mean confidence, accuracy) of each confidence bin.

    Bins are (i / bins, (i + 1) / bins]; an empty bin has share 0 and NaN elsewhere.
    """
    confidence = probabilities.max(1)
    correct = probabilities.argmax(1) == labels
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    counts = np.bincount(place, minlength=bins)
    with np.errstate(invalid="ignore"):
        mean_confidence = np.bincount(place, confidence, bins) / counts
        accuracy = np.bincount(place, correct, bins) / counts
    return counts / len(labels), mean_confidence, accuracy


def _expected_calibration_error(probabilities: np.ndarray, labels: np.ndarray) -> float:
    share, confidence, accuracy = reliability(probabilities, labels)
    return float(np.nansum(share * np.abs(confidence - accuracy)))


def _negative_log_likelihood(probabilities: np.ndarray, labels: np.ndarray) -> float:
    chosen = probabilities[np.arange(len(labels)), labels]
    return float(-np.log(np.maximum(chosen, np.finfo(np.float64).tiny)).mean())
