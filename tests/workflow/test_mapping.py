"""CWS's mapping is stage two: it runs again alone, and a run that is lost blocks nothing."""

from __future__ import annotations

import copy
import json

import pytest

from tests.workflow.workspace import PRELOADED, REPORT, Workspace

pytestmark = pytest.mark.workflow


def experiment(**settings):
    values = copy.deepcopy(PRELOADED)
    values["backbones"] |= {
        "split": {"use": "resnet8-cws", "epochs": 2, "features": {"views": 2}},
        "lost": {"use": "resnet8-cws", "epochs": 2, "features": {"views": 2}},
    }
    values["backbones"]["lost"]["learning_rate"] = 1.0e30
    mapping = {"use": "label-mapping-small", "epochs": 3}
    values["methods"] |= {
        "CWS": {**mapping, "backbones": {"features": "split"}, **settings},
        "CWS-lost": {**mapping, "backbones": {"features": "lost"}},
    }
    values["tables"]["main"]["rows"].append({"method": "CWS*"})
    values["figures"].append(
        {"kind": "subclass_occupancy", "dataset": "digits-lt", "backbone": "split"}
    )
    return values


def test_the_mapping_runs_again_alone_and_a_lost_run_is_reported(workspace: Workspace):
    workspace.write(experiment())
    workspace.snakemake()
    folder = workspace.work / "results/experiments/small/latest"
    table = (folder / "tables/main.md").read_text()
    (row,) = [line for line in table.splitlines() if "CWS-lost" in line]
    assert row.count("–") == 4
    assert "did not converge" in table and "the loss is nan after epoch" in table
    assert "CWS-lost" in (folder / "report.html").read_text()
    found = list((workspace.work / "results/stage1").rglob("diverged.json"))
    assert len(found) == 1
    manifest = json.loads((found[0].parent / "manifest.json").read_text())
    assert "the loss is nan" in manifest["diverged"]
    assert workspace.planned() == set()

    workspace.write(experiment(hidden=7))
    assert {title.split(" on ")[0] for title in workspace.planned()} == {"Run CWS"} | REPORT
    workspace.edit(
        workspace.module("ltpipe.stage2.cws.perceptron"),
        "    leaves = {",
        "    leaves = {**{}} | {",
    )
    again = workspace.planned()
    assert any(title.startswith("Run CWS-lost") for title in again)
    assert not any(title.startswith(("Train", "Cache")) for title in again)
