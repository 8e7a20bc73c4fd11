"""The data sets by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ltpipe.config.registry import load
from ltpipe.data.images import Images
from ltpipe.utils.errors import InputError, nearest
from ltpipe.utils.paths import data_root, locate

__all__ = ["data_root", "locate"]


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


def open_source(source: str, root: Path | None, options: Mapping[str, Any]) -> Source:
    """Open the data set called `source`.

    Args:
        source: the name of a registered source of images.
        root: folder of the data sets, see `data_root`.
        options: settings of that reader.

    Raises:
        InputError: unknown source or option, or files that are missing or damaged.
    """
    return load("source", source)(root, options)


def check_options(source: str, options: Mapping[str, Any], allowed: Iterable[str]) -> None:
    """Raise InputError for an option that the reader of `source` does not know."""
    names = sorted(allowed)
    for name in options:
        if name not in names:
            known = f"its options are {', '.join(names)}" if names else "it has no options"
            raise InputError(
                f"data source {source!r} has no option {name!r}{nearest(name, names)}: {known}"
            )


def image_size(source: str, options: Mapping[str, Any]) -> tuple[int, int]:
    """Return the option ``size``, one number or [height, width], as (height, width).

    Raises:
        InputError: it is missing or not one or two positive integers.
    """
    size = options.get("size")
    sides = [size, size] if isinstance(size, int) else size
    if (
        not isinstance(sides, list | tuple)
        or len(sides) != 2
        or not all(isinstance(side, int) and side > 0 for side in sides)
    ):
        raise InputError(
            f"data source {source!r} needs the option size, the stored image size, as one "
            f"positive integer or [height, width]; it is {size!r}"
        )
    return sides[0], sides[1]
