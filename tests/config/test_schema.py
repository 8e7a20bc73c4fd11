"""The JSON schema for editors is that of the models; run this file as a program to write it."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import TypeAdapter

from ltpipe.config.backbones import AnyBackbone
from ltpipe.config.datasets import Dataset
from ltpipe.config.experiment import ExperimentFile
from ltpipe.config.methods import Method
from ltpipe.plan.workload import Collection

PATH = Path(__file__).resolve().parents[2] / "workflow/schemas/experiment.schema.json"


def schema() -> str:
    """Return the schema of an experiment file; its definitions also cover the catalogue's."""
    value = TypeAdapter(ExperimentFile | Collection).json_schema()
    for model in (Dataset, AnyBackbone, Method):
        part = TypeAdapter(model).json_schema()
        value["$defs"].update(part.pop("$defs", {}))
    value["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    return json.dumps(value, indent=1, sort_keys=True) + "\n"


def test_the_schema_in_the_repository_is_current():
    assert PATH.read_text() == schema()


if __name__ == "__main__":
    PATH.write_text(schema())
