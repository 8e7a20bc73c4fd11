"""Whether a data set holds what its settings say it must."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from ltpipe.config.datasets import Expect
from ltpipe.data.sources import Source
from ltpipe.utils.errors import InputError


def check_expected(source: Source, expect: Expect | None, name: str) -> None:
    """Compare an opened source with what is expected of it; see `check_expected_labels`."""
    check_expected_labels(source.class_names, *source.labels, expect, name)


def check_expected_labels(
    class_names: Sequence[str],
    train: np.ndarray,
    val: np.ndarray | None,
    test: np.ndarray | None,
    expect: Expect | None,
    name: str,
) -> None:
    """Compare a data set, before any subset is drawn, with what is expected of it.

    Args:
        class_names: name of class c.
        train: (N,) labels of the training part; `val` and `test` likewise, if there are any.
        expect: what must hold; None expects nothing.
        name: of the source, for the error.

    Raises:
        InputError: something differs; names what is expected and what was found.
    """
    if expect is None:
        return
    counts = np.bincount(train, minlength=len(class_names)).tolist()
    text = ",".join(map(str, counts))
    found = {
        "classes": len(class_names),
        "train": len(train),
        "val": 0 if val is None else len(val),
        "test": 0 if test is None else len(test),
        "largest": max(counts),
        "smallest": min(counts),
        "train_counts": counts,
        "train_digest": hashlib.sha256(text.encode()).hexdigest()[:16],
    }
    for key, wanted in expect.model_dump(exclude_none=True).items():
        if found[key] == wanted:
            continue
        where = f"expect.{key}"
        had = found[key]
        if key == "train_counts" and len(wanted) == len(counts):
            label = next(c for c in range(len(counts)) if counts[c] != wanted[c])
            where += f"[{label}] ({class_names[label]})"
            had, wanted = counts[label], wanted[label]
        elif key == "train_counts":
            where, had, wanted = f"the length of {where}", len(counts), len(wanted)
        raise InputError(
            f"data source {name!r} is not the expected one: {where} is {wanted} but {had} was "
            "found; put the published files there, or change or remove expect if this is meant"
        )
