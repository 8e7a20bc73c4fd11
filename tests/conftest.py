"""Fixtures that all tests share."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests import plans

os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Small operations gain nothing from threads and collapse when the cores are shared."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data sets named by LTPIPE_DATA."""
    root = os.environ.get("LTPIPE_DATA")
    if not root or not Path(root).is_dir():
        pytest.skip("LTPIPE_DATA does not name a folder with the real data sets")
    return Path(root)


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
