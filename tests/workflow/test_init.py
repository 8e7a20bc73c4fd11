"""The file that `ltpipe init` writes for embeddings runs as it is."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from tests.workflow.workspace import Workspace, copy_sources

pytestmark = pytest.mark.workflow


def test_embeddings_from_look_to_table(tmp_path):
    workspace = Workspace(tmp_path / "source", tmp_path / "work")
    copy_sources(workspace.source)
    workspace.work.mkdir()
    stream = np.random.default_rng(0)
    centres = stream.normal(size=(4, 6))
    for split, counts in (("train", [40, 20, 8, 2]), ("test", [8, 8, 8, 8])):
        labels = np.repeat(np.arange(4), counts)
        features = centres[labels] + 0.3 * stream.normal(size=(len(labels), 6))
        np.savez(workspace.work / f"{split}.npz", features=features, labels=labels)
    done = subprocess.run(
        [sys.executable, "-m", "ltpipe", "init", ".", "--output", "mine.yaml"],
        cwd=workspace.work,
        env={"PATH": "", "PYTHONPATH": str(workspace.source)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "ltpipe run mine.yaml" in done.stdout
    # There is no Snakefile here, so the run takes the one beside the package.
    done = subprocess.run(
        [sys.executable, "-m", "ltpipe", "run", "mine.yaml", "--cores", "2"],
        cwd=workspace.work,
        env=workspace.environment(),
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert "report: results/experiments/mine/latest/report.html" in done.stdout
    results = workspace.work / "results/experiments/mine/latest"
    summary = (results / "summary.txt").read_text()
    for method in ("CE", "cRT", "BalancedSoftmax", "GDA", "kNN"):
        assert f"\n{method} " in summary
    assert (results / "report.html").is_file()
