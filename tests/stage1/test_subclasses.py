"""How many subclasses classes get: the paper's lists, rules by size and spread."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
import torch

from ltpipe.config.backbones.cws import SubclassPreset
from ltpipe.data.loading import open_split
from ltpipe.data.longtail import class_counts
from ltpipe.data.subset import read_subset
from ltpipe.stage1.cws.subclasses import (
    PRESETS,
    automatic,
    image_spread,
    spread_of,
    subclass_counts,
)
from ltpipe.utils.errors import InputError
from tests.support import CPU, DIGITS, draw

CIFAR10 = class_counts(10, 5000, 100)
CIFAR100 = class_counts(100, 500, 100)


def test_settings_know_the_lists():
    assert set(get_args(SubclassPreset)) == {*PRESETS, "counts", "counts-and-spread"}


@pytest.mark.parametrize(("name", "total"), [(n, int(n.split("-")[1])) for n in PRESETS])
def test_the_papers_lists(name, total):
    found = subclass_counts(name, CIFAR10)
    assert sum(found) == total
    assert found == PRESETS[name]
    assert sum(subclass_counts(name, CIFAR100)) == 10 * total
    assert subclass_counts(name, CIFAR100)[:11] == [found[0]] * 10 + [found[1]]


def test_a_list_goes_by_rank_not_by_label():
    # OCTMNIST: the normal eyes are the most, then the first class.
    assert subclass_counts([5, 3, 1, 1], [33484, 10213, 7754, 46026]) == [3, 1, 1, 5]
    assert subclass_counts([2, 1], [7, 9, 7, 9]) == [1, 2, 1, 2]
    assert subclass_counts([3, 2, 1], [5, 5, 5]) == [3, 2, 1]


@pytest.mark.parametrize(
    ("wanted", "counts", "message"),
    [
        ([2, 1, 1], [9, 9, 9, 9], "there are 3 numbers for 4 classes"),
        ("paper-18", [9, 9, 9, 9], "'paper-18' has 10 numbers for 4 classes"),
        ([3, 3], [9, 2], "class 1 has 2 training images, too few for 3"),
    ],
)
def test_lists_that_do_not_fit_are_refused(wanted, counts, message):
    with pytest.raises(InputError, match=message):
        subclass_counts(wanted, counts)


def test_by_size_each_subclass_is_about_a_fifth_of_the_largest_class():
    # 5000 2997 1796 1077 645 387 232 139 83 50: quotients by 1000 are rounded, at least one.
    assert subclass_counts("counts", CIFAR10) == [5, 3, 2, 1, 1, 1, 1, 1, 1, 1]
    assert automatic([4, 1]) == [4, 1]


def test_wider_classes_are_split_into_more():
    counts = [100, 100, 100, 40]
    assert automatic(counts) == [5, 5, 5, 2]
    # Means of spreads 1: sizes 50, 100, 200, 20, so of the largest, 200, a quarter, a half, all.
    spread = torch.tensor([0.5, 1.0, 2.0, 0.5]) / 1.0
    assert automatic(counts, spread) == [1, 2, 5, 1]
    assert subclass_counts("counts-and-spread", counts, spread) == [1, 2, 5, 1]


def test_spread_is_the_root_mean_square_distance_from_the_mean():
    stream = np.random.default_rng(0)
    labels = np.array([0, 1, 1, 2, 2, 2, 2])
    vectors = stream.normal(size=(7, 3)) * (1 + labels[:, None])
    expected = []
    for label in range(3):
        members = vectors[labels == label]
        expected.append(np.sqrt(np.mean(((members - members.mean(0)) ** 2).sum(1))))
    found = spread_of(torch.from_numpy(vectors), torch.from_numpy(labels), 3)
    np.testing.assert_allclose(found, expected, atol=1e-7)


def test_the_images_spread_is_that_of_their_pixels(tmp_path):
    subset = read_subset(draw(tmp_path) / "subset.h5")
    split = open_split(DIGITS, subset, "train", CPU, None)
    found = image_spread(split.batches, split.labels, 10)
    order = torch.arange(len(split.labels))
    images = torch.cat(list(split.batches.epoch(order, 64, None))).float() / 255
    expected = spread_of(images.flatten(1), split.labels, 10)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    # Larger images than 16 x 16 are averaged down; twice as large ones are the same then.
    small = image_spread(split.batches, split.labels, 10, size=4)
    pooled = torch.nn.functional.adaptive_avg_pool2d(images, 4)
    np.testing.assert_allclose(small, spread_of(pooled.flatten(1), split.labels, 10), rtol=1e-6)
