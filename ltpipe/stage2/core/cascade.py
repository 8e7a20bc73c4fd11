"""A filter as methods are given it: known to all of them, made by one job."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Filter:
    """A filter of a cascade: its flow, and the log-likelihood from which on it takes a sample."""

    flow: Any
    threshold: float
