"""A finished tiny experiment in the working folder."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests import plans


@pytest.fixture(scope="session")
def tiny_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tiny experiment run; do not change it."""
    folder = tmp_path_factory.mktemp("tiny")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("LTPIPE_DATA", raising=False)
        plans.write_embeddings(folder)
        plans.run_plan(plans.write_experiment(folder))
    return folder


@pytest.fixture
def tiny(tiny_once: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, as the working folder."""
    folder = tmp_path / "work"
    shutil.copytree(tiny_once, folder)
    monkeypatch.chdir(folder)
    monkeypatch.delenv("LTPIPE_DATA", raising=False)
    return folder
