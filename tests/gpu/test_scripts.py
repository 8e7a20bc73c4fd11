"""The scripts for a machine with a GPU, as far as one without can run them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.gpu import first, reproduce

pytestmark = pytest.mark.heavy

HERE = Path(__file__).parent


def test_every_experiment_of_the_order_is_there():
    known = {path.stem for path in (reproduce.REPOSITORY / "config/experiments").glob("*.yaml")}
    assert set(reproduce.ORDER) <= known
    assert len(set(reproduce.ORDER)) == len(reproduce.ORDER)


@pytest.mark.slow
def test_every_check_is_reported_and_none_stops_the_others(tmp_path):
    report = tmp_path / "report.md"
    command = [sys.executable, str(HERE / "first.py"), "--device=cpu", "--small"]
    subprocess.run([*command, f"--output={report}"], check=True, timeout=1500)
    text = report.read_text()
    for check in first.CHECKS:
        assert f"## {check.__doc__}" in text
    assert "FAILED" not in text
    assert "out of time" not in text


def test_a_check_that_fails_is_said_and_the_next_one_runs(tmp_path, monkeypatch, capsys):
    report = tmp_path / "report.md"
    # Without a GPU this one can't be run, and the machine is still named.
    monkeypatch.setattr(first, "CHECKS", (first.kernels, first.machine))
    monkeypatch.setattr(sys, "argv", ["first.py", "--small", f"--output={report}"])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    first.main()
    assert "kernels: FAILED" in capsys.readouterr().out
    assert "torch " in report.read_text()
