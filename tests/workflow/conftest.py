"""A finished small experiment, and copies of it to change."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.workflow.workspace import PRELOADED, Workspace, copy_sources


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A workspace in which the cut-down experiment has been run once; do not change it."""
    base = tmp_path_factory.mktemp("workflow")
    workspace = Workspace(base / "source", base / "work")
    copy_sources(workspace.source)
    workspace.work.mkdir()
    workspace.write(PRELOADED)
    workspace.snakemake()
    return workspace


@pytest.fixture
def workspace(finished: Workspace, tmp_path: Path) -> Workspace:
    """A copy of the finished workspace at another place, free to be changed."""
    copy = Workspace(tmp_path / "source", tmp_path / "work")
    shutil.copytree(finished.source, copy.source)
    shutil.copytree(finished.work, copy.work, symlinks=True)
    return copy
