"""Progress of long work: a bar on a terminal, lines with an estimate elsewhere, as in logs."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import Any, Generic, TypeVar

from tqdm import tqdm

T = TypeVar("T")
# Between two lines of one loop; what is over sooner needs none.
_SECONDS = 2.0


def track(
    items: Iterable[T],
    description: str,
    total: int | None = None,
    initial: int = 0,
    every: bool = False,
) -> Any:
    """Return an iterator over `items` that shows how far it is.

    On a terminal that is a bar; elsewhere a line every few seconds, or after each item with
    `every`, such as `training: 3/60, loss 0.512, 1:10 left`.
    """
    if not sys.stderr.isatty():
        return _Lines(items, description, total, initial, every)
    return tqdm(
        items,
        desc=description,
        total=total,
        initial=initial,
        dynamic_ncols=True,
        leave=False,
    )


def say(text: str) -> None:
    """Print one line of result, above a bar if one stands."""
    tqdm.write(text, file=sys.stdout)
    sys.stdout.flush()


def duration(seconds: float) -> str:
    """Return seconds as minutes and seconds, or hours, minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class _Lines(Generic[T]):
    """What `track` returns where there is no terminal; it has of tqdm what loops use."""

    def __init__(
        self, items: Iterable[T], description: str, total: int | None, initial: int, every: bool
    ) -> None:
        self._items = items
        self._description = description
        self._total = len(items) if total is None and isinstance(items, Sized) else total
        self._initial = initial
        self._every = every
        self._facts = ""

    def set_postfix(self, **facts: str) -> None:
        """Say more of the item that is being worked on."""
        self._facts = "".join(f", {name} {value}" for name, value in facts.items())

    def __iter__(self) -> Iterator[T]:
        started = said = time.monotonic()
        for done, item in enumerate(self._items, start=1):
            yield item
            now = time.monotonic()
            if self._every or now - said >= _SECONDS:
                said = now
                self._say(done, now - started)

    def _say(self, done: int, seconds: float) -> None:
        place = self._initial + done
        text = f"{self._description}: {place}"
        if self._total is not None:
            left = seconds / done * (self._total - place)
            text += f"/{self._total}{self._facts}, {duration(left)} left"
        else:
            text += f"{self._facts}, {duration(seconds)}"
        print(text, file=sys.stderr, flush=True)
