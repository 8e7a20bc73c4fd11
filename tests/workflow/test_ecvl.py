"""Phase II runs on what phase I left: its settings and its code start no phase I again."""

from __future__ import annotations

import json

import pytest

from tests.workflow.workspace import Workspace

pytestmark = pytest.mark.workflow

EXPERIMENT = {
    "experiment": "towers",
    "seeds": [0],
    "preload": True,
    "datasets": {"digits-lt": None},
    "backbones": {
        "towers": {
            "use": "small-towers",
            "network": "small-vit",
            "batch_norm": "eval",
            "epochs": 1,
            "features": {"views": 2, "ladder": {"strengths": 2, "draws": 2}},
        }
    },
    "methods": {
        "zero-shot": {"backbones": {"features": "towers"}},
        "ballad": {"backbones": {"features": "towers"}, "epochs": 2},
        "ecvl": {"backbones": {"features": "towers"}, "epochs": 2},
    },
    "tables": {
        "main": {
            "rows": [{"method": "zero-shot"}, {"method": "ballad"}, {"method": "ecvl"}],
            "metrics": ["accuracy", "macro_f1", "head_tail_gap"],
        }
    },
}
REPORT = {
    "Write the tables, figures and report of towers",
    "Publish the report as results/experiments/towers/latest",
}


def test_a_new_phase_two_starts_no_phase_one(workspace: Workspace):
    workspace.write(EXPERIMENT)
    workspace.snakemake()
    table = (workspace.work / "results/experiments/towers/latest/tables/main.md").read_text()
    assert "small-vit: random initial weights, not pretrained, 1 epochs" in table
    assert "head-tail gap" in table
    (manifest,) = (workspace.work / "results/features/digits-lt/small-towers").rglob(
        "manifest.json"
    )
    assert json.loads(manifest.read_text())["latency_s_per_100_images"] > 0

    changed = json.loads(json.dumps(EXPERIMENT))
    changed["methods"]["ecvl"]["mu"] = 0.5
    workspace.write(changed)
    assert workspace.planned() == {"Run ecvl on digits-lt, seed 0"} | REPORT
    workspace.write(EXPERIMENT)
    workspace.edit(workspace.module("ltpipe.stage2.ecvl.memory"), "largest > 0", "largest > 0.0")
    assert workspace.planned() == REPORT | {
        "Run ballad on digits-lt, seed 0",
        "Run ecvl on digits-lt, seed 0",
    }
    # Another ladder is another dump of the same towers.
    changed = json.loads(json.dumps(EXPERIMENT))
    changed["backbones"]["towers"]["features"]["ladder"]["draws"] = 3
    workspace.write(changed)
    planned = workspace.planned()
    assert "Cache the features of towers on digits-lt, seed 0" in planned
    assert not any(title.startswith("Train") for title in planned)
