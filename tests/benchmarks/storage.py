"""The feature file: written, opened, and read in shuffled batches where it lies."""

from __future__ import annotations

import contextlib
import functools
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import h5py
import numpy as np
import torch
import work
from measure import Result, Run, alternate, seconds_of
from stage2 import LARGE, large_store

from ltpipe.features import store as feature_store
from ltpipe.features.store import FeatureStore, write_features
from ltpipe.stage2.core.batches import Draws, FeatureBatches, Rows
from ltpipe.utils.io import file_sha256

BATCH = 64


def samples_of(run: Run) -> int:
    """Return how many rows the files have."""
    return 3200 if run.quick else LARGE[0]


def write(path: Path, store: FeatureStore) -> None:
    """Write the product's file."""
    write_features(
        path,
        features=store.features,
        labels=store.labels,
        class_names=store.class_names,
        class_counts=store.class_counts,
        views=store.views,
    )


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    """Make a folder on the disk that LTPIPE_BENCH_DIR names, or the usual temporary one."""
    with tempfile.TemporaryDirectory(dir=os.environ.get("LTPIPE_BENCH_DIR")) as name:
        yield Path(name)


def writing(run: Run) -> Iterator[Result]:
    store = large_store(samples_of(run))
    volume = store.features.nbytes / 1e6
    with folder() as path:

        def theirs() -> None:
            with (path / "b.npy").open("wb") as handle:
                np.save(handle, store.features)
                handle.flush()
                os.fsync(handle.fileno())

        def removed(work_: object, name: str) -> float:
            seconds = seconds_of(work_)  # type: ignore[arg-type]
            (path / name).unlink()
            return seconds

        product, peer = alternate(
            lambda: removed(functools.partial(write, path / "a.h5", store), "a.h5"),
            lambda: removed(theirs, "b.npy"),
            3,
        )
    yield Result(
        "HDF5 write, synced",
        "MB/s",
        volume / product,
        volume / peer,
        "peer: np.save, synced; the product adds checksums",
        "disk write, synced",
        1e6,
    )


def reading(run: Run) -> Iterator[Result]:
    """All from the system's cache: what the disk gives is a ceiling of its own."""
    store = large_store(samples_of(run))
    samples, dimension = store.features.shape
    volume = store.features.nbytes / 1e6
    rounds = 1 if run.quick else 2
    # Small files are read and not mapped; here all sizes shall be.
    mapped = mock.patch.object(feature_store, "MAPPED_FROM_BYTES", 0)
    with folder() as path, mapped:
        write(path / "a.h5", store)
        np.save(path / "b.npy", store.features)
        product, peer = alternate(
            lambda: seconds_of(lambda: FeatureStore.open(path / "a.h5")),
            lambda: seconds_of(lambda: np.load(path / "b.npy")),
            rounds,
        )
        yield Result(
            "HDF5 open, every byte checked",
            "MB/s",
            volume / product,
            volume / peer,
            "cached; checksum and finite numbers, mapped; peer: np.load, unchecked",
            "memory read",
            1e6,
        )
        hashed = min(seconds_of(lambda: file_sha256(path / "a.h5")) for _ in range(3))
        yield Result(
            "SHA-256 of an input",
            "MB/s",
            volume / hashed,
            None,
            "every job holds its inputs against their manifests",
            "memory read",
            1e6,
        )
        opened = FeatureStore.open(path / "a.h5")
        rows = Rows(torch.from_numpy(opened.features))
        labels = torch.from_numpy(store.labels)
        draws = Draws(labels, 1, 0, classes=LARGE[2], sampler="shuffle")
        batches = FeatureBatches(rows, draws, BATCH)
        product = min(seconds_of(lambda: _use_up(batches(0))) for _ in range(2))
        order = np.random.default_rng(0).permutation(samples)
        # A part of an epoch shows the rate of the slow forms.
        part = order[: BATCH * (10 if run.quick else 100)]
        with h5py.File(path / "a.h5", "r") as file:
            data = file["features"]
            fancy = min(seconds_of(lambda: _by_h5py(data, part)) for _ in range(rounds))
        table = np.load(path / "b.npy")
        loaded = min(seconds_of(lambda: _in_memory(table, order)) for _ in range(rounds))
        for name, peer, remark in (
            ("HDF5 batches, beside h5py", len(part) / fancy, "peer: h5py, sorted rows a batch"),
            ("HDF5 batches, beside memory", samples / loaded, "peer: rows of what np.load gave"),
        ):
            yield Result(
                name,
                "rows/s",
                samples / product,
                peer,
                f"shuffled batches of {BATCH} from a mapped file, cached; {remark}",
                "memory copy",
                work.gather_bytes(dimension),
            )


def _use_up(batches: Iterator[object]) -> None:
    for _ in batches:
        pass


def _by_h5py(data: h5py.Dataset, order: np.ndarray) -> None:
    for start in range(0, len(order), BATCH):
        # h5py asks for rows in ascending order.
        torch.from_numpy(data[np.sort(order[start : start + BATCH])])


def _in_memory(table: np.ndarray, order: np.ndarray) -> None:
    for start in range(0, len(order), BATCH):
        torch.from_numpy(table[order[start : start + BATCH]])
