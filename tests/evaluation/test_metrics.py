"""Metrics against scikit-learn, explicit loops and published class groups."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as sk

from ltpipe.data.longtail import class_counts
from ltpipe.evaluation.metrics import evaluate, group_of_classes
from ltpipe.utils.errors import InputError

COUNTS = [300, 120, 60, 20, 19, 3]


def made(samples=240, classes=6, seed=0):
    stream = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(classes), stream.integers(0, classes, samples - classes)])
    scores = stream.normal(size=(samples, classes))
    scores[np.arange(samples), labels] += 1.0
    return scores, labels


def softmax(scores):
    shifted = np.exp(scores - scores.max(1, keepdims=True))
    return shifted / shifted.sum(1, keepdims=True)


@pytest.mark.parametrize("seed", range(4))
def test_against_scikit_learn(seed):
    scores, labels = made(seed=seed)
    found = evaluate(scores, labels, COUNTS)
    predicted, probabilities = scores.argmax(1), softmax(scores)
    recall = sk.recall_score(labels, predicted, average=None)
    expected = {
        "accuracy": sk.accuracy_score(labels, predicted),
        "balanced_accuracy": sk.balanced_accuracy_score(labels, predicted),
        "macro_f1": sk.f1_score(labels, predicted, average="macro"),
        "mcc": sk.matthews_corrcoef(labels, predicted),
        "nmi": sk.normalized_mutual_info_score(labels, predicted),
        "auc": sk.roc_auc_score(labels, probabilities, multi_class="ovr", average="macro"),
        "nll": sk.log_loss(labels, probabilities),
        "many": recall[:2].mean(),
        "medium": recall[2:4].mean(),
        "few": recall[4:].mean(),
        "head_tail_gap": recall[:2].mean() - recall[4:].mean(),
    }
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-12), name
    np.testing.assert_allclose(found["per_class"], recall)
    assert found["num_samples"] == 240


def test_calibration_error_by_a_loop():
    scores, labels = made()
    probabilities = softmax(3 * scores)
    confidence, predicted = probabilities.max(1), probabilities.argmax(1)
    error = 0.0
    for low in range(15):
        inside = (confidence > low / 15) & (confidence <= (low + 1) / 15)
        if inside.any():
            gap = (predicted[inside] == labels[inside]).mean() - confidence[inside].mean()
            error += inside.mean() * abs(gap)
    assert evaluate(probabilities, labels, COUNTS)["ece"] == pytest.approx(error, abs=1e-12)


def test_probabilities_and_their_logits_say_the_same():
    scores, labels = made()
    a, b = evaluate(scores, labels, COUNTS), evaluate(softmax(scores), labels, COUNTS)
    for name in ("accuracy", "auc", "ece", "nll"):
        assert a[name] == pytest.approx(b[name], abs=1e-12)


def test_ties_in_scores_count_half_for_the_area():
    scores = np.array([[0.5, 0.5], [0.5, 0.5], [0.8, 0.2], [0.2, 0.8]])
    labels = np.array([0, 1, 0, 1])
    expected = sk.roc_auc_score(labels, scores[:, 1])
    assert evaluate(scores, labels, [2, 2])["auc"] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("classes", "imbalance", "sizes"), [(100, 100, (35, 35, 30)), (100, 200, (30, 31, 39))]
)
def test_groups_by_thresholds_are_the_published_ones(classes, imbalance, sizes):
    groups = group_of_classes(class_counts(classes, 500, imbalance), "thresholds")
    assert tuple(groups.count(name) for name in ("many", "medium", "few")) == sizes


def test_the_thresholds_belong_to_the_medium_classes():
    assert group_of_classes([101, 100, 20, 19], "thresholds") == ["many", "medium", "medium", "few"]


def test_groups_by_rank_are_thirds_whatever_the_order():
    counts = [1, 120, 2, 72, 3, 43, 6, 26, 9, 15]
    groups = group_of_classes(counts, "ranks")
    assert [counts[i] for i, g in enumerate(groups) if g == "many"] == [120, 72, 43]
    assert sorted(counts[i] for i, g in enumerate(groups) if g == "few") == [1, 2, 3]
    assert groups.count("medium") == 4
    text = evaluate(np.eye(10), np.arange(10), counts, groups="ranks")["groups"]
    assert text == "many/medium/few: ranks 1-3/4-7/8-10 by training count"


def test_absent_classes_and_empty_groups_are_no_numbers():
    found = evaluate(np.eye(3)[[0, 1, 1]], np.array([0, 1, 1]), [500, 400, 300])
    assert np.isnan(found["per_class"][2])
    assert np.isnan(found["few"]) and np.isnan(found["auc"])
    assert found["balanced_accuracy"] == 1.0


@pytest.mark.parametrize(
    ("scores", "labels", "counts", "message"),
    [
        (np.full((2, 2), np.nan), [0, 1], [1, 1], "NaN"),
        (np.zeros((2, 2)), [0, 2], [1, 1], "from 0 to 1"),
        (np.zeros((2, 2)), [0, -1], [1, 1], "from 0 to 1"),
        (np.zeros((2, 2)), [0], [1, 1], "do not fit"),
        (np.zeros((2, 2)), [0, 1], [1], "class counts"),
        (np.zeros((0, 2)), np.zeros(0, int), [1, 1], "do not fit"),
    ],
)
def test_bad_input_is_refused(scores, labels, counts, message):
    with pytest.raises(InputError, match=message):
        evaluate(scores, np.asarray(labels), counts)


def test_an_unknown_rule_is_refused():
    with pytest.raises(InputError, match="did you mean 'ranks'"):
        group_of_classes([1, 2], "rank")
