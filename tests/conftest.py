"""Fixtures that all tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

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
