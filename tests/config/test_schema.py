"""`ltpipe schema` describes what experiment files may say."""

from __future__ import annotations

import json

from ltpipe.cli.program import main
from ltpipe.config.registry import registered


def test_the_schema_has_every_registered_name_of_settings_and_every_key(capsys):
    assert main(["schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    names = {
        (key, name)
        for definition in schema["$defs"].values()
        for key, field in definition.get("properties", {}).items()
        for name in [field.get("const"), *field.get("enum", [])]
        if isinstance(name, str)
    }
    for kind, key in (
        ("source", "source"),
        ("system", "system"),
        ("method", "kind"),
        ("loss", "name"),
    ):
        assert {(key, name) for name in registered(kind)} <= names
    keys = {key for d in schema["$defs"].values() for key in d.get("properties", {})}
    assert {"experiment", "datasets", "methods", "learning_rate", "w1", "max_margin"} <= keys
