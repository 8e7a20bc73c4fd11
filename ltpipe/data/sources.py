"""What a data set gives: its classes, and the images and labels of its parts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ltpipe.data.images import Images


@dataclass(frozen=True)
class Part:
    """One split: N images and their (N,) int64 labels."""

    images: Images
    labels: np.ndarray


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
