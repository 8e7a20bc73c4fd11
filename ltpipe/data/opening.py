"""From what a spec says of a data set to its settings, and to the part that a split is of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from ltpipe.config.datasets import Dataset
from ltpipe.data.sources import Part, Source
from ltpipe.data.subset import Subset
from ltpipe.utils.errors import InputError

_DATASET: TypeAdapter[Any] = TypeAdapter(Dataset)


def dataset_settings(identity: Mapping[str, Any]) -> Any:
    """Return the data set's settings, defaults filled in, from a spec."""
    return _DATASET.validate_python(identity)


def split_part(source: Source, subset: Subset, split: str, name: str) -> Part:
    """Return the part of an opened data set that a split is of.

    Raises:
        InputError: there is none, or its samples are not those that the subset was drawn from.
    """
    part: Part | None = getattr(source, subset.part(split))
    index, labels = getattr(subset, f"{split}_index"), getattr(subset, f"{split}_labels")
    if part is None:
        raise InputError(f"data source {name!r} has no {split} images")
    if len(index) and (
        index.max() >= len(part.labels) or not np.array_equal(part.labels[index], labels)
    ):
        raise InputError(
            f"the {split} images of source {name!r} are others than those that were drawn; run "
            "again"
        )
    return part
