"""Defaults are frozen: artifacts leave them out of their identity.

A changed default would let an old artifact pass for a new one. To change one on purpose, add a
new setting or a new value instead. A new setting is added to defaults.json together with its
default: run this file as a program.
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

from ltpipe.config.base import Settings
from ltpipe.config.losses import loss_class
from ltpipe.config.registry import load, registered

# Settings that say nothing about how an artifact is made.
OF_NO_ARTIFACT = ("experiment", "figures", "tables")

GOLDEN = Path(__file__).with_name("defaults.json")


def defaults() -> dict[str, dict[str, Any]]:
    """Return the default of every setting that has one, by class and name."""
    importlib.import_module("ltpipe.config.experiment")
    for kind in ("source", "system", "method"):
        for name in registered(kind):
            load(kind, name)
    for name in registered("loss"):
        loss_class("loss", name)
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
    places = [f"ltpipe.config.{name}" for name in OF_NO_ARTIFACT]
    return model.__module__.startswith("ltpipe.") and model.__module__ not in (
        *places,
        "ltpipe.plan.workload",
    )


def _dump(value: Any) -> Any:
    return value.model_dump(mode="json")


def test_no_default_ever_changes():
    assert defaults() == json.loads(GOLDEN.read_text())


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(defaults(), indent=1, sort_keys=True) + "\n")
