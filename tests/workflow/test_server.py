"""A run whose jobs are forked from one server: when it starts, and when it ends.

That such a run leaves the bytes that a plain one leaves is in `test_reruns.py`.
"""

from __future__ import annotations

import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ltpipe.runtime import client
from tests.workflow.workspace import PRELOADED, Workspace

pytestmark = pytest.mark.workflow


@pytest.fixture
def preloaded(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workspace]:
    """The workspace before its first run, with jobs that log who started them."""
    monkeypatch.setenv("LTPIPE_DEVICE", "cpu")
    monkeypatch.delenv(client.VARIABLE, raising=False)
    # The name of a socket has to be short.
    temporary = tempfile.mkdtemp()
    monkeypatch.setenv("TMPDIR", temporary)
    (workspace.work / "tmp").symlink_to(temporary)
    line = "    spec = _read_spec(options.stage, text, output)\n"
    who = '    print("started by", os.getppid())\n'
    workspace.edit(workspace.module("ltpipe.cli.jobs"), line, who + line)
    shutil.rmtree(workspace.work / "results")
    workspace.write(PRELOADED)
    yield workspace
    shutil.rmtree(temporary, ignore_errors=True)


def starters(workspace: Workspace) -> list[str]:
    logs = sorted((workspace.work / "results/logs").rglob("*.log"))
    return [number for log in logs for number in re.findall(r"started by (\d+)", log.read_text())]


def servers(workspace: Workspace) -> list[Path]:
    return list((workspace.work / "tmp").glob("ltpipe-*"))


def test_one_server_starts_all_jobs_and_ends_with_the_run(preloaded: Workspace):
    preloaded.snakemake()
    found = starters(preloaded)
    assert len(found) == 8
    assert len(set(found)) == 1
    deadline = time.monotonic() + 10
    while servers(preloaded) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert servers(preloaded) == []


def test_planning_and_lint_start_no_server(preloaded: Workspace):
    assert preloaded.planned()
    preloaded.snakemake("--lint", check=False)
    assert servers(preloaded) == []
