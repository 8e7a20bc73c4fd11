"""The split into head and tail classes, by hand."""

from __future__ import annotations

import pytest

from ltpipe.data.head_tail import group_classes, tail_classes
from ltpipe.data.longtail import class_counts
from ltpipe.utils.errors import InputError


def test_three_fifths_of_ten_classes():
    counts = [50, 40, 30, 20, 15, 10, 8, 6, 4, 2]
    assert group_classes(counts, 0.6, "head") == [0, 1, 2, 3]
    assert group_classes(counts, 0.6, "tail") == [4, 5, 6, 7, 8, 9]


def test_classes_need_no_order():
    assert group_classes([2, 50, 10, 30], 0.5, "head") == [1, 3]
    assert tail_classes([2, 50, 10, 30], 0.5).tolist() == [True, False, True, False]


def test_classes_as_large_as_the_smallest_head_class_are_head_too():
    # The fourth largest has 20, and so have two classes beyond it.
    counts = [50, 40, 30, 20, 20, 20, 8, 6, 4, 2]
    assert group_classes(counts, 0.6, "head") == [0, 1, 2, 3, 4, 5]
    assert group_classes(counts, 0.6, "tail") == [6, 7, 8, 9]


@pytest.mark.parametrize(("share", "tail"), [(0.3, 2), (0.45, 3), (0.5, 4), (0.2, 1)])
def test_the_number_of_tail_classes_is_rounded(share, tail):
    # 2.1, 3.15, 3.5 (to the even 4) and 1.4 of seven classes.
    assert len(group_classes([70, 60, 50, 40, 30, 20, 10], share, "tail")) == tail


@pytest.mark.parametrize(
    ("classes", "largest", "imbalance", "sizes"),
    [(100, 500, 50, (40, 60)), (100, 500, 100, (40, 60)), (200, 500, 200, (80, 120))],
)
def test_the_papers_sizes(classes, largest, imbalance, sizes):
    counts = class_counts(classes, largest, imbalance)
    found = tuple(len(group_classes(counts, 0.6, group)) for group in ("head", "tail"))
    assert found == sizes


def test_a_split_without_head_or_tail_is_refused():
    with pytest.raises(InputError, match=r"tail_share 0\.9 leaves no head class of 4"):
        tail_classes([4, 3, 2, 1], 0.9)
    with pytest.raises(InputError, match="none has fewer than 5 samples"):
        tail_classes([5, 5, 5, 5], 0.5)
    with pytest.raises(InputError, match="leaves no tail class"):
        tail_classes([9, 5, 3, 1], 0.1)
