"""What a data set gives: its classes, and the images and labels of its parts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ltpipe.data.images import Images
from ltpipe.utils.errors import InputError


@dataclass(frozen=True)
class Part:
    """One split: N images, their (N,) int64 labels, and of files what people know them by.

    `paths` are relative to the data set's folder, None where images are no files.
    """

    images: Images
    labels: np.ndarray
    paths: Sequence[str] | None = None


@dataclass(frozen=True)
class Source:
    """A data set before any subset is drawn; label c is `class_names[c]` in every part."""

    class_names: list[str]
    train: Part
    val: Part | None = None
    test: Part | None = None

    @property
    def labels(self) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
        """Labels of the training, validation and test part; None for a part that is not there."""
        val = None if self.val is None else self.val.labels
        test = None if self.test is None else self.test.labels
        return self.train.labels, val, test


def sorted_names(texts: Iterable[str]) -> list[str]:
    """Return the different texts in order; numbers by their size."""
    names = set(texts)
    if all(name.isascii() and name.isdecimal() for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)


def check_classes(labels: np.ndarray) -> None:
    """Hold training labels against their number, before a name is made for each class.

    Raises:
        InputError: there are more classes than samples.
    """
    if len(labels) and labels.max() >= len(labels):
        present = np.unique(labels)
        at = np.flatnonzero(present != np.arange(len(present)))
        missing = at[0] if len(at) else len(present)
        raise InputError(
            f"class {missing} ({missing}) has no training sample: add one or leave the class out"
        )
