"""Defaults are frozen: artifacts leave them out of their identity.

A changed default would let an old artifact pass for a new one. To change one on purpose, add a
new setting or a new value instead. A new setting is added to defaults.json together with its
default: run this file as a program.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ltpipe.config import backbones, datasets, methods
from ltpipe.config.base import Settings

# Whatever says how an artifact is made; an experiment's tables and figures are no part of one.
PACKAGES = (datasets, backbones, methods)

GOLDEN = Path(__file__).with_name("defaults.json")


def defaults() -> dict[str, dict[str, Any]]:
    """Return the default of every setting that has one, by class and name."""
    found = {}
    for model in sorted(_models(Settings), key=lambda model: model.__name__):
        if _is_identity(model):
            found[model.__name__] = {
                key: json.loads(json.dumps(field.get_default(), default=_dump))
                for key, field in sorted(model.model_fields.items())
                if not field.is_required() and key not in model.labels
            }
    return found


def _models(model: type[Settings]) -> set[type[Settings]]:
    children = set(model.__subclasses__())
    return children.union(*map(_models, children))


def _is_identity(model: type[Settings]) -> bool:
    names = ("ltpipe.config.losses", *(package.__name__ for package in PACKAGES))
    return any(f"{model.__module__}.".startswith(f"{name}.") for name in names)


def _dump(value: Any) -> Any:
    return value.model_dump(mode="json")


def test_no_default_ever_changes():
    assert defaults() == json.loads(GOLDEN.read_text())


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(defaults(), indent=1, sort_keys=True) + "\n")
