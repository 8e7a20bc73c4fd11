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

GOLDEN = Path(__file__).with_name("defaults.json")


def defaults() -> dict[str, dict[str, Any]]:
    """Return the default of every setting that has one, by class and name."""
    found = {}
    for module in (datasets, backbones, methods):
        for name, model in sorted(vars(module).items()):
            if isinstance(model, type) and issubclass(model, Settings) and model is not Settings:
                found[name] = {
                    key: json.loads(json.dumps(field.get_default(), default=_dump))
                    for key, field in sorted(model.model_fields.items())
                    if not field.is_required() and key not in model.labels
                }
    return found


def _dump(value: Any) -> Any:
    return value.model_dump(mode="json")


def test_no_default_ever_changes():
    assert defaults() == json.loads(GOLDEN.read_text())


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(defaults(), indent=1, sort_keys=True) + "\n")
