"""Runs whose jobs make several results each: what is there, what is made, what a failure leaves."""

from __future__ import annotations

from typing import Any

import pytest

from ltpipe.artifacts.manifest import read_manifest
from tests.workflow.workspace import PRELOADED, REPORT, Workspace

pytestmark = pytest.mark.workflow

ON_CE = {"backbones": {"features": "ce"}}
EXPERIMENT: dict[str, Any] = {
    **PRELOADED,
    "results_per_job": 10,
    "methods": {
        **PRELOADED["methods"],
        "NCM": {"use": "ncm", **ON_CE},
        "COSINE": {"use": "cosine", "epochs": 1, **ON_CE},
        "CRT": {"use": "crt", "epochs": 1, **ON_CE},
    },
}


def test_results_on_the_same_features_are_one_job(workspace: Workspace):
    workspace.write(EXPERIMENT)
    batch = "Run NCM on digits-lt, seed 0, and 2 more on its features"
    # What is there already is left alone.
    assert workspace.planned() == {batch, *REPORT}
    workspace.snakemake()
    assert workspace.planned() == set()
    folders = [
        folder
        for name in ("ncm", "cosine", "crt")
        for folder in workspace.work.glob(f"results/stage2/digits-lt/{name}/*/seed0")
    ]
    whole = [read_manifest(folder)["outputs"] for folder in folders]
    assert len(whole) == 3

    # One that lost a file has a job of its own; with another it is a batch again.
    (folders[0] / "metrics.csv").unlink()
    assert workspace.planned("stage2") == {"Run NCM on digits-lt, seed 0"}
    (folders[1] / "manifest.json").unlink()
    (job,) = workspace.planned("stage2")
    assert job == "Run NCM on digits-lt, seed 0, and 1 more on its features"
    workspace.snakemake("stage2")
    assert [read_manifest(folder)["outputs"] for folder in folders] == whole
