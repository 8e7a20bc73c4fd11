"""What the results of one job have in common is made once."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

_Value = TypeVar("_Value")

_shared: dict[Hashable, Any] | None = None


@contextmanager
def sharing() -> Iterator[None]:
    """Let `shared` keep what it makes for the block."""
    global _shared
    before, _shared = _shared, {}
    try:
        yield
    finally:
        _shared = before


def shared(key: Hashable, make: Callable[[], _Value]) -> _Value:
    """Return what `make` returns; within `sharing`, what the first call of this key returned.

    Nobody may write to it.
    """
    if _shared is None:
        return make()
    if key not in _shared:
        _shared[key] = make()
    value: _Value = _shared[key]
    return value
