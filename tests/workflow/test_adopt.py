"""After code was edited, what was made is adopted and only pages are written anew."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.workflow.workspace import Workspace

pytestmark = pytest.mark.workflow


def ltpipe(workspace: Workspace, *arguments: str) -> str:
    """Run a command of the workspace's own package beside its results."""
    command = [sys.executable, "-m", "ltpipe", *arguments]
    command += ["experiment.yaml", "--catalogue", str(workspace.source / "config")]
    environment = {**os.environ, "PYTHONPATH": str(workspace.source), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        command, cwd=workspace.work, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_code_that_every_training_uses(workspace: Workspace):
    workspace.append("ltpipe.training.engine")
    workspace.append("ltpipe.stage2.core.fit")
    dry = workspace.snakemake("-n")
    said = dry.stdout + dry.stderr
    assert "2 finished trainings (" in said and "because of code alone" in said
    assert "`ltpipe adopt " in said
    planned = workspace.planned()
    assert "Train ce on digits-lt, seed 0" in planned
    why = ltpipe(workspace, "why")
    assert "module ltpipe.training.engine: changed" in why
    adopted = ltpipe(workspace, "adopt")
    assert "left" not in adopted.replace(", 0 left", "")
    pages = {title for title in planned if title.startswith(("Write ", "Publish "))}
    assert workspace.planned() == pages
    done = workspace.snakemake()
    assert "because of code alone" not in done.stdout + done.stderr
    assert "Nothing to be done" in workspace.snakemake().stderr
    assert ltpipe(workspace, "adopt") == "0 artifacts adopted (0.0 s to make), 0 left\n"
