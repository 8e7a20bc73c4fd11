"""The profile for SLURM on a real one, brought up on this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slurm, pytest.mark.slow]


def test_a_cut_down_demo_runs_through_the_profile(tmp_path):
    done = subprocess.run(
        ["bash", str(Path(__file__).with_name("run.sh")), str(tmp_path)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHON": sys.executable},
        timeout=1800,
    )
    if done.returncode == 77:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all as recorded" in done.stdout
    assert "ran side by side" in done.stdout
    assert "going on after epoch" in done.stdout
    assert "100 classifiers in 2 submissions of groups and 0 of one" in done.stdout
