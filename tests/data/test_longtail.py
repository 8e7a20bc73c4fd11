import hashlib
import math

import numpy as np
import pytest

from ltpipe.data.longtail import class_counts, draw_subset, split_validation
from ltpipe.utils.errors import InputError

# (classes, largest, imbalance) -> (total, first 16 hex digits of the SHA-256 of the joined counts)
PUBLISHED = {
    (10, 5000, 10): (20431, "b6c08295628c1c63"),
    (10, 5000, 20): (17023, "82a627fbfb75c805"),
    (10, 5000, 50): (13996, "f802a0b00f5b6be0"),
    (10, 5000, 100): (12406, "720e505b6ae0ca4f"),
    (10, 5000, 200): (11203, "18a6f3435ffa1c78"),
    (100, 500, 10): (19573, "7f990766cbb5e57b"),
    (100, 500, 20): (15907, "c7369163a5bdfba6"),
    (100, 500, 50): (12608, "8f43f6eb10ed026f"),
    (100, 500, 100): (10847, "a86899e02756da51"),
    (100, 500, 200): (9502, "7b521240327ba674"),
    (200, 500, 50): (25082, "9d3d76a86f3093aa"),
    (200, 500, 100): (21549, "75c1035b83e6f454"),
    (200, 500, 200): (18836, "a830e79387a62bd1"),
}


@pytest.mark.parametrize(("setting", "expected"), PUBLISHED.items())
def test_exponential_profile_gives_the_published_data_sets(setting, expected):
    counts = class_counts(*setting)
    digest = hashlib.sha256(",".join(map(str, counts)).encode()).hexdigest()[:16]
    assert (sum(counts), digest) == expected


def test_exponential_counts_written_out():
    assert class_counts(10, 5000, 100) == [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
    assert class_counts(100, 500, 200)[-12:] == [4, 4, 4, 3, 3, 3, 3, 3, 2, 2, 2, 2]
    assert class_counts(10, 120, 100) == [120, 71, 43, 25, 15, 9, 5, 3, 2, 1]


def test_smallest_class_is_never_rounded_to_nothing():
    assert int(49 * (1 / 49)) == 0
    assert class_counts(10, 49, 49)[-1] == 1


def test_step_profile():
    assert class_counts(5, 100, 4, "step") == [100, 100, 25, 25, 25]


@pytest.mark.parametrize(
    ("classes", "largest", "imbalance"), [(10, 5000, 100), (7, 500, 5), (1000, 1280, 256)]
)
def test_pareto_profile_is_a_power_law_of_the_rank(classes, largest, imbalance):
    counts = class_counts(classes, largest, imbalance, "pareto")
    assert counts[0] == largest
    assert counts[-1] == largest // imbalance
    slope = math.log(imbalance) / math.log(classes)
    for rank, count in enumerate(counts, start=1):
        assert count <= largest * rank**-slope * (1 + 1e-9) < count + 1 + 1e-6


@pytest.mark.parametrize("profile", ["exp", "step", "pareto"])
def test_no_imbalance_is_balanced(profile):
    assert class_counts(4, 30, 1, profile) == [30] * 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1, 10, 1), "num_classes is 1"),
        ((3, 0, 1), "max_count is 0"),
        ((3, 10, 0.5), "imbalance is 0.5"),
        ((3, 10, 11), "imbalance is 11"),
        ((3, 10, float("nan")), "imbalance is nan"),
        ((3, 10, 2, "expo"), "did you mean 'exp'"),
    ],
)
def test_bad_profiles_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        class_counts(*arguments)


def test_draw_uses_the_legacy_stream_in_class_order():
    index = draw_subset(np.repeat([0, 1], 500), [8, 8], seed=0)
    assert index.dtype == np.int64
    assert index[:8].tolist() == [90, 254, 283, 445, 461, 15, 316, 489]
    assert (index[8:] - 500).tolist() == [277, 307, 436, 88, 261, 57, 413, 459]


def test_draw_equals_the_global_seed_form_and_leaves_global_state_alone():
    labels = np.random.default_rng(0).integers(0, 5, 400)
    counts = [40, 20, 10, 5, 1]
    np.random.seed(666)  # noqa: NPY002 (what the published code does)
    expected = []
    for label, count in enumerate(counts):
        positions = np.where(labels == label)[0]
        np.random.shuffle(positions)  # noqa: NPY002
        expected.extend(positions[:count])
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    np.testing.assert_array_equal(draw_subset(labels, counts, 666), expected)
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002
    assert not np.array_equal(draw_subset(labels, counts, 667), expected)


def test_draw_names_the_class_that_is_short_or_empty():
    labels = np.array([0, 0, 0, 1])
    with pytest.raises(InputError, match=r"class 1 has 1 training samples but 2"):
        draw_subset(labels, [3, 2], 0)
    with pytest.raises(InputError, match=r"class 1 is to have 0"):
        draw_subset(labels, [3, 0], 0)


def test_validation_split_sizes():
    sizes = [100, 25, 10, 9, 2, 1]
    labels = np.random.default_rng(1).permutation(np.repeat(np.arange(6), sizes))
    train, val = split_validation(labels, 0, 0.1)
    assert np.bincount(labels[val], minlength=6).tolist() == [10, 2, 1, 1, 1, 0]
    np.testing.assert_array_equal(np.sort(np.concatenate([train, val])), np.arange(len(labels)))
    again = split_validation(labels, 0, 0.1)[1]
    np.testing.assert_array_equal(val, again)
    assert not np.array_equal(val, split_validation(labels, 1, 0.1)[1])


@pytest.mark.parametrize("fraction", [0, 1, -0.1])
def test_validation_fraction_out_of_range(fraction):
    with pytest.raises(InputError, match="split fraction"):
        split_validation(np.zeros(4, int), 0, fraction)


def test_large_fraction_leaves_each_class_one_training_sample():
    train, _ = split_validation(np.repeat([0, 1], [3, 1]), 0, 0.99)
    assert len(train) == 2


def test_rounding_to_the_nearest_gives_the_counts_of_digits_lt():
    counts = class_counts(10, 120, 100, rounding="nearest")
    assert counts == [120, 72, 43, 26, 15, 9, 6, 3, 2, 1]
    assert sum(counts) == 297
    with pytest.raises(InputError, match="unknown rounding 'floor-ish'"):
        class_counts(10, 120, 100, rounding="floor-ish")
