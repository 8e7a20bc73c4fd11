"""The script for GPUs runs every path, or says that there is nothing to measure."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

pytestmark = pytest.mark.heavy

SCRIPT = Path(__file__).with_name("gpu.py")


def run(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_it_says_that_the_goals_are_unmeasured(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [str(SCRIPT)])
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(SystemExit, match=r"^0$"):
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert capsys.readouterr().out == "no GPU here: the goals on GPUs stay unmeasured\n"


def test_every_path_runs_on_tiny_sizes(tmp_path):
    table = tmp_path / "gpu.csv"
    arguments = ["--device", "cpu", "--small", "--epochs", "1"]
    printed = run(*arguments, "--csv", str(table))
    rows = pd.read_csv(table)
    assert len(rows) == 4
    assert all(name in printed for name in rows["name"])
    assert (rows["value"] > 0).all()
    for part in ("ResNet-32", "FFN sweep, 11 models", "DLSA"):
        assert rows["name"].str.contains(part, regex=False).any()
    # What is tiny or on a CPU says nothing of the goals.
    assert rows["goal_s"].isna().all()
    whole = rows[rows["unit"] == "s"]["remark"].str.contains("extrapolated from 1 epoch")
    assert whole.sum() == 1
