"""A whole experiment on a few made embeddings, run in this process in a second."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ltpipe.cli.program import main
from ltpipe.plan.layout import ArtifactSpec, Plan
from ltpipe.plan.stages import STAGES
from ltpipe.plan.workload import load_workload

CATALOGUE = Path(__file__).resolve().parents[1] / "config"

EXPERIMENT: dict[str, Any] = {
    "experiment": "tiny",
    "seeds": [0],
    "datasets": {
        "mine": {
            "source": "features",
            "stores": {"net": {"train": "train.npz", "test": "test.npz"}},
        }
    },
    "methods": {
        "NCM": {"kind": "ncm", "backbones": {"features": "net"}},
        "Linear": {
            "kind": "classifier",
            "backbones": {"features": "net"},
            "views": "plain",
            "epochs": 2,
        },
    },
    "tables": {"main": {"rows": [{"method": "NCM"}, {"method": "Linear"}]}},
}


def write_embeddings(folder: Path) -> None:
    """Write train.npz and test.npz of four classes in six dimensions."""
    centres = np.random.default_rng(0).normal(size=(4, 6))
    for split, counts in (("train", [40, 20, 10, 5]), ("test", [8, 8, 8, 8])):
        labels = np.repeat(np.arange(4), counts)
        noise = np.random.default_rng(len(split)).normal(size=(len(labels), 6))
        np.savez(folder / f"{split}.npz", features=centres[labels] + 0.3 * noise, labels=labels)


def changed(**sections: Any) -> dict[str, Any]:
    """Return the experiment with some of its methods' settings, or its top keys, changed."""
    values = copy.deepcopy(EXPERIMENT)
    for name, settings in sections.pop("methods", {}).items():
        values["methods"][name].update(settings)
    return {**values, **sections}


def write_experiment(folder: Path, values: dict[str, Any] = EXPERIMENT, name: str = "") -> Path:
    """Write an experiment file."""
    path = folder / (name or "experiment.yaml")
    path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    return path


def plan_of(path: Path) -> Plan:
    """Return the plan of an experiment file on the real catalogue."""
    return load_workload(path, CATALOGUE).plans[0]


def run_cell(cell: ArtifactSpec, *more: str) -> int:
    """Run the job of one artifact below the working folder, as a rule would."""
    roles = [f"--input={role}={needed.folder}" for role, needed in cell.inputs.items()]
    if cell.kind == "report":
        roles = []
    command = [cell.stage.command, "--spec", cell.spec_text, "--output", cell.folder]
    return main([*command, *roles, *more])


def run_plan(path: Path) -> Plan:
    """Run what is missing of an experiment, one job after the other."""
    plan = plan_of(path)
    for kind in STAGES:
        for cell in plan.of_kind(kind):
            if not Path(cell.folder, "manifest.json").is_file():
                assert run_cell(cell) == 0, cell.title
    assert run_cell(plan.report) == 0
    return plan
