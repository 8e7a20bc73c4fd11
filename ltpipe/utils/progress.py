"""Progress of long work: a bar with an estimate on a terminal, nothing elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any, TypeVar

from tqdm import tqdm

T = TypeVar("T")


def track(items: Iterable[T], description: str, total: int | None = None, initial: int = 0) -> Any:
    """Return a bar over `items` with elapsed time and estimate; silent when not on a terminal."""
    return tqdm(
        items,
        desc=description,
        total=total,
        initial=initial,
        disable=not sys.stderr.isatty(),
        dynamic_ncols=True,
        leave=False,
    )


def say(text: str) -> None:
    """Print one line of result, above a bar if one stands."""
    tqdm.write(text, file=sys.stdout)
    sys.stdout.flush()
