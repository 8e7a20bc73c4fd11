"""Killed anywhere, a workflow's next run ends with the bytes of an unbroken one."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest

from ltpipe.artifacts.verify import verify
from tests import plans
from tests.faults import kill
from tests.workflow.workspace import EXPERIMENT

DIGITS = {
    "experiment": "killed",
    "seeds": [0],
    "datasets": {"digits-lt": {"max_count": 20, "imbalance": 10.0}},
    "backbones": {"ce": {"use": "resnet8-ce", "epochs": 2, "features": {"views": 1}}},
    "methods": {"CE": {"use": "backbone-head", "backbones": {"features": "ce"}}},
    "tables": {"main": {"rows": [{"method": "CE"}]}},
}


def in_a_child(path: Path) -> int:
    """Start what is missing of an experiment in a fork of this process."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            null = os.open(os.devnull, os.O_WRONLY)
            for stream in (1, 2):
                os.dup2(null, stream)
            plans.run_plan(path)
            code = 0
        finally:
            os._exit(code)
    return pid


@pytest.mark.heavy
def test_jobs_killed_at_ten_moments(tmp_path, monkeypatch):
    """Every kind of job, one after the other, without the workflow around them."""
    monkeypatch.delenv("LTPIPE_DATA", raising=False)
    monkeypatch.setenv("LTPIPE_DEVICE", "cpu")

    def run(folder: Path, after: float | None) -> float:
        monkeypatch.chdir(folder)
        started = time.monotonic()
        pid = in_a_child(plans.write_experiment(folder, DIGITS))
        if after is not None:
            time.sleep(after)
            os.kill(pid, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert status in ((0,) if after is None else (0, -signal.SIGKILL))
        return time.monotonic() - started

    reference = tmp_path / "reference"
    reference.mkdir()
    length = run(reference, None)
    expected = kill.contents(reference)
    stream, cut = random.Random(0), 0
    for place in range(10):
        folder = tmp_path / f"run{place}"
        folder.mkdir()
        run(folder, stream.uniform(0, length))
        before = kill.finished(folder)
        cut += len(before) < len(kill.finished(reference))
        run(folder, None)
        after = kill.finished(folder)
        pages = folder / "results/experiments"
        assert all(
            after[path] == state for path, state in before.items() if not path.is_relative_to(pages)
        )
        assert kill.contents(folder) == expected
        assert verify(folder / "results").wrong == []
        shutil.rmtree(folder)
    assert cut >= 5


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    workspace = kill.prepare(tmp_path_factory.mktemp("kill"), {**DIGITS, "experiment": "small"})
    return workspace, kill.run_through(workspace)


@pytest.mark.workflow
@pytest.mark.xdist_group("kill")
@pytest.mark.parametrize(
    ("fraction", "number"),
    [(0.6, signal.SIGKILL), pytest.param(0.75, signal.SIGTERM, marks=pytest.mark.slow)],
)
def test_a_workflow_ended_by_a_signal(reference, tmp_path, fraction, number):
    workspace, length = reference
    said = kill.check(workspace, tmp_path / "run", fraction * length, number)
    assert "artifacts finished" in said


@pytest.mark.slow
@pytest.mark.workflow
def test_ten_moments_of_the_whole_workflow(tmp_path):
    workspace = kill.prepare(tmp_path, EXPERIMENT)
    length = kill.run_through(workspace)
    for place, after in enumerate(kill.moments(10, length, seed=1)):
        kill.check(workspace, tmp_path / f"run{place}", after)
