"""Stage two on features that are larger than the memory that it may use."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ltpipe.features import store
from ltpipe.features.store import FeatureStore, write_features

pytestmark = pytest.mark.heavy

LIMIT = 160 << 20
PROGRAM = """
import json, resource, sys
from pathlib import Path
import torch
from ltpipe.features import store
from ltpipe.artifacts.job import Job
from ltpipe.utils.memory import keep_freed_memory
from ltpipe.stage2.simple import classifier

torch.set_num_threads(1)
keep_freed_memory()
store.MAPPED_FROM_BYTES = int(sys.argv[4])
status = Path("/proc/self/status").read_text().splitlines()
used = next(int(line.split()[1]) for line in status if line.startswith("VmData")) * 1024
limit = used + int(sys.argv[3])
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
method = {"kind": "classifier", "views": "plain", "epochs": 2, "batch_size": 512}
spec = {"method": method, "groups": "ranks", "seed": 0}
folder, output = map(Path, sys.argv[1:3])
classifier.run(Job(spec, {"features.features": folder}, output, torch.device("cpu")))
"""


def wide(folder, samples, dim=1024):
    stream = np.random.default_rng(0)
    for split, number in (("train", samples), ("test", 200)):
        labels = np.arange(number) % 4
        features = stream.standard_normal((number, dim), dtype=np.float32)
        features[np.arange(number), labels] += 6
        write_features(
            folder / f"{split}.h5",
            features=features,
            labels=labels,
            class_names=list("abcd"),
            class_counts=np.bincount(labels).tolist(),
        )


def run(folder, output, mapped_from):
    output.mkdir()
    command = [sys.executable, "-c", PROGRAM, str(folder), str(output), str(LIMIT)]
    return subprocess.run(
        [*command, str(mapped_from)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_features_larger_than_the_memory_limit_are_mapped(tmp_path):
    wide(tmp_path, 70_000)
    size = (tmp_path / "train.h5").stat().st_size
    assert size > 1.5 * LIMIT
    done = run(tmp_path, tmp_path / "mapped", mapped_from=size // 2)
    assert done.returncode == 0, done.stderr
    table = pd.read_csv(tmp_path / "mapped/metrics.csv")
    assert table[table["metric"] == "accuracy"]["value"].item() > 0.95
    # The limit means something: reading the same file does not fit into it.
    assert run(tmp_path, tmp_path / "read", mapped_from=10 * size).returncode != 0


def test_mapped_and_read_features_are_the_same(tmp_path, monkeypatch):
    wide(tmp_path, 500, 32)
    read = FeatureStore.open(tmp_path / "train.h5")
    monkeypatch.setattr(store, "MAPPED_FROM_BYTES", 1000)
    mapped = FeatureStore.open(tmp_path / "train.h5")
    assert isinstance(mapped.features, np.memmap)
    assert not mapped.features.flags.writeable
    np.testing.assert_array_equal(mapped.features, read.features)
    np.testing.assert_array_equal(mapped.labels, read.labels)
