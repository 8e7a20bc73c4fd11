"""Predictions of the command line: which files are meant, and their table."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

import numpy as np

from ltpipe.data.readers.folder import SUFFIXES
from ltpipe.utils.errors import InputError
from ltpipe.utils.io import write_text_atomic


def image_files(given: Sequence[Path]) -> list[Path]:
    """Return the files that are named, and those below folders by their suffix, sorted there.

    Raises:
        InputError: something named is not there, or a folder has no image.
    """
    files: list[Path] = []
    for path in given:
        if path.is_dir():
            found = sorted(
                file
                for file in path.rglob("*")
                if file.suffix.lower() in SUFFIXES and file.is_file()
            )
            if not found:
                raise InputError(f"{path}: no images below it ({', '.join(sorted(SUFFIXES))})")
            files += found
        elif path.exists():
            files.append(path)
        else:
            raise InputError(f"{path}: no such file or folder")
    return files


def feature_files(given: Sequence[Path], roles: Sequence[str]) -> dict[str, Path]:
    """Return the feature file of each role: FILE where there is one role, else ROLE=FILE.

    Raises:
        InputError: a role has no file, or one is named that is not there.
    """
    if len(roles) == 1 and len(given) == 1 and given[0].exists():
        return {roles[0]: given[0]}
    found = {}
    for item in given:
        role, _, file = str(item).partition("=")
        if role not in roles or not file:
            usage = roles[0] if len(roles) == 1 else " ".join(f"{role}=FILE" for role in roles)
            raise InputError(f"{item}: this bundle takes features; write {usage}")
        found[role] = Path(file)
    return found


def write_table(
    target: TextIO | Path,
    samples: Sequence[str],
    labels: Sequence[str],
    probabilities: np.ndarray,
    *,
    sets: np.ndarray | None = None,
    column: str = "path",
    top: int,
    full: bool,
) -> None:
    """Write a row a sample as CSV: its name, the `top` labels with probabilities, at will all.

    Args:
        target: a path, written whole or not at all, or an open text stream.
        sets: bool (N, C), shown as the labels in each, likeliest first, with semicolons between.
        column: what the names are.
        samples: N names; `labels` C names; `probabilities` (N, C).
    """
    stream = io.StringIO() if isinstance(target, Path) else target
    rows = csv.writer(stream, lineterminator="\n")
    ranks = range(1, top + 1)
    heading = [f"{name}_{rank}" for rank in ranks for name in ("label", "probability")]
    columns = [f"p_{label}" for label in labels] if full else []
    rows.writerow([column, *heading, *([] if sets is None else ["set"]), *columns])
    order = np.argsort(-probabilities, axis=1, kind="stable")
    for number, (sample, values) in enumerate(zip(samples, probabilities, strict=True)):
        best = order[number]
        pairs = [item for place in best[:top] for item in (labels[place], _shown(values[place]))]
        inside = [] if sets is None else [labels[place] for place in best if sets[number, place]]
        shown = [] if sets is None else ["; ".join(inside)]
        rows.writerow([sample, *pairs, *shown, *(map(_shown, values) if full else [])])
    if isinstance(target, Path):
        write_text_atomic(target, stream.getvalue())  # type: ignore[attr-defined]


def _shown(value: np.floating) -> str:
    return f"{float(value):.6g}"
