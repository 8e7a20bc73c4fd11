"""Build a loss from its settings."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from ltpipe.config.registry import load
from ltpipe.losses.base import Loss


def build_loss(settings: Any, class_counts: Sequence[int]) -> Loss:
    """Return the loss that `settings` name; one that depends on class counts (C,) gets them."""
    factory = load("loss", settings.name)
    options = settings.model_dump(exclude={"name"})
    if "class_counts" in inspect.signature(factory).parameters:
        return factory(class_counts, **options)
    return factory(**options)
