"""Exact copies among image files: within a class, under two labels, in training and test."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_SHOWN = 3


@dataclass(frozen=True)
class Sample:
    """An image file: where it lies, the name of its class, its split."""

    path: Path
    label: str
    split: str


def find_copies(samples: Sequence[Sample]) -> list[list[Sample]]:
    """Return the groups of samples whose files hold the same bytes.

    Only files of one size are read. A file that can't be read is like no other.
    """
    return [
        group
        for same in _grouped(samples, _size).values()
        if len(same) > 1
        for group in _grouped(same, _content).values()
        if len(group) > 1
    ]


def describe_copies(groups: Sequence[Sequence[Sample]]) -> list[str]:
    """Return what to know of copies, a line for each kind that there is."""
    lines = []
    for text, found in (
        (
            "under several labels, so at least one is wrong",
            [group for group in groups if len({sample.label for sample in group}) > 1],
        ),
        (
            "in training and test, which makes the test easier than it is",
            [group for group in groups if {"train", "test"} <= {s.split for s in group}],
        ),
        ("among the images of one class and split", [g for g in groups if _is_within(g)]),
    ):
        if found:
            shown = "; ".join(
                " = ".join(str(sample.path) for sample in group) for group in found[:_SHOWN]
            )
            more = f"; and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
            lines.append(f"exact copies {text} ({len(found)}): {shown}{more}")
    return lines


def _is_within(group: Sequence[Sample]) -> bool:
    return len({(sample.label, sample.split) for sample in group}) == 1


def _grouped(samples: Sequence[Sample], key: object) -> Mapping[object, list[Sample]]:
    groups = defaultdict(list)
    for sample in samples:
        groups[key(sample.path)].append(sample)  # type: ignore[operator]
    return groups


def _size(path: Path) -> object:
    try:
        return path.stat().st_size
    except OSError:
        return path


def _content(path: Path) -> object:
    try:
        with path.open("rb") as handle:
            return hashlib.file_digest(handle, "sha256").digest()
    except OSError:
        return path
