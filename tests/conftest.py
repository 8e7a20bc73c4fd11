"""Fixtures that all tests share."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from tests import plans

if TYPE_CHECKING:
    from ltpipe.features.store import FeatureStore

os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Let Snakemake fail in tests without a mark that says they start it, however they do.

    It reads the name of a profile from the environment and refuses one that does not exist.
    """
    with pytest.MonkeyPatch.context() as patch:
        if item.get_closest_marker("workflow") or item.get_closest_marker("slurm"):
            patch.delenv("SNAKEMAKE_PROFILE", raising=False)
        else:
            patch.setenv("SNAKEMAKE_PROFILE", "test-without-the-mark-workflow")
        return (yield)


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Small operations gain nothing from threads and collapse when the cores are shared."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture
def double_precision(
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Callable[[FeatureStore], FeatureStore]]:
    """Run what the package does in float32 in float64, and bring feature stores to it.

    Sums of the same numbers in another order differ by a few units in the last place, which a
    training multiplies. In float32 the result may come close to what a real error makes; in float64
    it stays 29 bits below it. The order is the processor's and the library's, not ours.
    """
    import torch

    def doubled(store: FeatureStore) -> FeatureStore:
        arrays = {
            name: value.astype(np.float64)
            for name, value in vars(store).items()
            if isinstance(value, np.ndarray) and value.dtype.kind == "f"
        }
        return dataclasses.replace(store, **arrays)

    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    torch.set_default_dtype(torch.float64)
    yield doubled
    torch.set_default_dtype(torch.float32)


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
