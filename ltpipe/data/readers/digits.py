"""scikit-learn's 1,797 handwritten 8 x 8 digits, which come with the package."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np

from ltpipe.config.datasets import ImageDataset
from ltpipe.config.registry import reader
from ltpipe.data.images import ArrayImages
from ltpipe.data.sources import Part, Source

_TEST_PER_CLASS = 50


@reader("digits", paper="Alpaydin and Kaynak, UCI 1998")
class DigitsDataset(ImageDataset):
    """scikit-learn's handwritten 8 x 8 digits."""

    source: Literal["digits"]

    def files(self, root: Path | None) -> Iterator[tuple[str, str]]:
        return iter(())

    def read(self, root: Path | None) -> Source:
        return read_digits()


def read_digits() -> Source:
    """Return the digits as (8, 8, 1) images: 50 test images a class, the others to train on."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    images = np.rint(pixels * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
    labels = labels.astype(np.int64)
    stream = np.random.RandomState(0)
    is_test = np.zeros(len(labels), dtype=bool)
    for digit in range(10):
        positions = stream.permutation(np.flatnonzero(labels == digit))
        is_test[positions[:_TEST_PER_CLASS]] = True
    return Source(
        class_names=[str(digit) for digit in range(10)],
        train=Part(ArrayImages(images[~is_test]), labels[~is_test]),
        test=Part(ArrayImages(images[is_test]), labels[is_test]),
    )
