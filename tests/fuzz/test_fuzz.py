"""Random damage to config and feature files: an InputError of one line, or a right result.

The damage is drawn from seeds, so a failure repeats itself.
"""

from __future__ import annotations

import copy
import random
import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import yaml

from ltpipe.config.experiment import load_experiment
from ltpipe.data.readers.features import read_features
from ltpipe.features.store import FeatureStore
from ltpipe.plan.layout import build_plan
from ltpipe.testing import make_store
from ltpipe.utils.errors import InputError
from tests import plans
from tests.bad_input.cases import GOOD
from tests.fuzz.grammar import places

ODD: list[Any] = [
    None,
    True,
    -1,
    0,
    10**400,
    1e308,
    float("nan"),
    float("inf"),
    "",
    "null",
    "{loss}",
    "{",
    "../x",
    "a" * 5000,
    "\x00",
    "ü",
    [],
    [None],
    [[1]],
    {},
    {"name": "ce"},
    {"kind": "dlsa"},
    {"a": {"b": {"c": 1}}},
    {1: 2},
]
TEXT = [*":{}[]&*!|>'\"%@`#-?,\n\t \\\x00", "<<: *a", "!!python/none", "&a", "- ", "1e999"]


def one_line(error: InputError) -> None:
    assert str(error).strip() and "\n" not in str(error), str(error)


def at(values: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        values = values[key]
    return values


def mutated(values: dict[str, Any], stream: random.Random) -> dict[str, Any]:
    """Change, remove, rename, or move one to three of the values."""
    values = copy.deepcopy(values)
    for _ in range(stream.randint(1, 3)):
        found = places(values)
        if not found:
            break
        path = stream.choice(found)
        parent, key = at(values, path[:-1]), path[-1]
        action = stream.choice(["odd", "odd", "odd", "remove", "rename", "move"])
        if action == "odd":
            parent[key] = copy.deepcopy(stream.choice(ODD))
        elif action == "remove":
            del parent[key]
        elif action == "move":
            parent[key] = copy.deepcopy(at(values, stream.choice(found[: len(found) // 2 + 1])))
        elif isinstance(parent, dict):
            parent[stream.choice([f"{key}x", "use", "sweep", "for", ""])] = parent.pop(key)
    return values


def read(path: Path) -> Any:
    """Return the plan of an experiment file, or None where it was refused in one line."""
    try:
        plan = build_plan(load_experiment(path, plans.CATALOGUE))
    except InputError as error:
        one_line(error)
        return None
    for cell in plan.artifacts.values():
        assert cell.folder.startswith("results/") and ".." not in cell.folder.split("/")
        assert cell.spec_text and "\n" not in cell.folder
    assert plan.report.spec_text
    return plan


def test_changed_values_of_an_experiment(tmp_path):
    refused = 0
    for seed in range(120):
        values = mutated(GOOD, random.Random(seed))
        path = tmp_path / "x.yaml"
        path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
        try:
            refused += read(path) is None
        except Exception as error:
            raise AssertionError(f"seed {seed}: {values}") from error
    assert 50 < refused < 120


def test_changed_text_of_an_experiment(tmp_path):
    text = yaml.safe_dump(GOOD, sort_keys=False)
    path = tmp_path / "x.yaml"
    refused = 0
    for seed in range(80):
        stream = random.Random(seed)
        data = text
        for _ in range(stream.randint(1, 4)):
            place = stream.randrange(len(data))
            cut = stream.choice([0, 0, 1, 1, 20])
            data = data[:place] + stream.choice(TEXT) + data[place + cut :]
        path.write_bytes(data.encode())
        try:
            refused += read(path) is None
        except Exception as error:
            raise AssertionError(f"seed {seed}: {data}") from error
    assert refused > 30


def test_changed_bytes_of_an_experiment(tmp_path):
    data = yaml.safe_dump(GOOD).encode()
    path = tmp_path / "x.yaml"
    for seed in range(50):
        stream = np.random.default_rng(seed)
        changed = np.frombuffer(data, np.uint8).copy()
        places = stream.integers(0, len(changed), stream.integers(1, 5))
        changed[places] = stream.integers(0, 256, len(places))
        path.write_bytes(changed[: stream.integers(1, len(changed) + 1)].tobytes())
        read(path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("store")
    make_store(folder, 0)
    return folder / "train.h5"


def damaged(data: bytes, seed: int) -> bytes:
    """Flip, overwrite, cut out or cut off some bytes."""
    stream = random.Random(seed)
    changed = bytearray(data)
    for _ in range(stream.randint(1, 3)):
        place = stream.randrange(len(changed))
        length = stream.choice([1, 1, 4, 64, 512])
        action = stream.choice(["flip", "flip", "noise", "zeros", "cut", "end"])
        if action == "flip":
            changed[place] ^= 1 << stream.randrange(8)
        elif action == "noise":
            changed[place : place + length] = stream.randbytes(length)
        elif action == "zeros":
            changed[place : place + length] = bytes(length)
        elif action == "cut":
            del changed[place : place + length]
        else:
            del changed[place + 1 :]
    return bytes(changed)


def same_store(found: FeatureStore, right: FeatureStore) -> bool:
    names = ("features", "labels", "index", "views", "logits", "classifier_weight")
    return all(
        np.array_equal(getattr(found, name), getattr(right, name))
        for name in names
        if getattr(found, name) is not None
    )


def test_damaged_feature_stores_are_refused_or_right(whole, tmp_path):
    right = FeatureStore.open(whole)
    data = whole.read_bytes()
    path = tmp_path / "a.h5"
    refused = 0
    for seed in range(300):
        path.write_bytes(damaged(data, seed))
        try:
            found = FeatureStore.open(path)
        except InputError as error:
            one_line(error)
            assert str(path) in str(error)
            refused += 1
        except Exception as error:
            raise AssertionError(f"seed {seed}") from error
        else:
            # What damage spares is read as it was written; its names may differ.
            assert same_store(found, right), f"seed {seed}: damage went unnoticed"
    assert refused > 150


@pytest.mark.parametrize("kind", ["npz", "h5", "npy"])
def test_damaged_embeddings_are_refused_or_read_whole(tmp_path, kind):
    features = np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32)
    labels = np.arange(40) % 4
    source = tmp_path / f"whole.{kind}"
    if kind == "npz":
        np.savez(source, features=features, labels=labels)
    elif kind == "npy":
        np.save(source, features)
        np.save(tmp_path / "labels.npy", labels)
    else:
        with h5py.File(source, "w") as file:
            file["features"], file["labels"] = features, labels
    beside = tmp_path / "labels.npy" if kind == "npy" else None
    path = tmp_path / f"a.{kind}"
    refused = 0
    for seed in range(200):
        path.write_bytes(damaged(source.read_bytes(), seed))
        try:
            found, classes = read_features(path, beside)
        except InputError as error:
            assert path.name in str(error) or "labels.npy" in str(error)
            refused += 1
        except Exception as error:
            raise AssertionError(f"seed {seed}") from error
        else:
            # These formats carry no checksum of their own (npz does): shapes and kinds must hold.
            assert found.ndim == 2 and found.dtype == np.float32
            assert classes.shape == (len(found),) and classes.dtype == np.int64
            assert np.isfinite(found).all() and (classes >= 0).all()
            if kind == "npz":
                assert np.array_equal(found, features) and np.array_equal(classes, labels)
    assert refused > 20


def test_a_damaged_manifest_never_passes_for_another(tmp_path, tiny):
    from ltpipe.artifacts.manifest import read_manifest
    from ltpipe.artifacts.verify import verify

    (path,) = Path("results/features").rglob("manifest.json")
    data = path.read_bytes()
    for seed in range(80):
        path.write_bytes(damaged(data, seed))
        try:
            manifest = read_manifest(path.parent)
        except InputError as error:
            one_line(error)
        else:
            assert isinstance(manifest["outputs"], dict)
        verify(path.parent)
    shutil.rmtree(tiny)
