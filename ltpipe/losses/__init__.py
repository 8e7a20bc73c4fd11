"""Losses for long-tailed classification; each name is imported from its module when asked for."""

from __future__ import annotations

import importlib
from typing import Any

# Names as data instead of import statements: the code identity of a method that uses one loss
# follows import statements and must not depend on the other losses.
_MODULES = {
    "Loss": "base",
    "CrossEntropyLoss": "softmax",
    "BalancedSoftmaxLoss": "softmax",
    "LogitAdjustedLoss": "softmax",
    "LabelSmoothingLoss": "smoothing",
    "LabelAwareSmoothingLoss": "smoothing",
    "LDAMLoss": "margin",
    "KPSLoss": "margin",
    "ClassBalancedLoss": "reweight",
    "FocalLoss": "reweight",
    "effective_number_weights": "weights",
    "inverse_frequency_weights": "weights",
}

__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
