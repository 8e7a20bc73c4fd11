"""Bad input through the command line: one clear line, status 2, nothing half-written."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from ltpipe.artifacts.manifest import write_manifest
from ltpipe.cli.program import main
from ltpipe.testing import make_store
from tests.support import CE, DIGITS, command_line

FOLDER = {"source": "folder", "path": "pets", "input": {"size": [8, 8]}}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty working folder with a small image folder of two classes in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LTPIPE_DATA", raising=False)
    stream = np.random.default_rng(0)
    for split, number in (("train", 6), ("test", 3)):
        for name in ("cat", "dog"):
            folder = tmp_path / "pets" / split / name
            folder.mkdir(parents=True)
            for i in range(number):
                pixels = stream.integers(0, 256, (9, 11, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    return tmp_path


def job(command, spec, output="out", **inputs):
    """Run a job below a folder; return its status."""
    roles = {role.replace("__", "."): folder for role, folder in inputs.items()}
    return main(command_line(command, spec, roles, output))


def made(output):
    """Return the one artifact below a folder."""
    (manifest,) = Path(output).rglob("manifest.json")
    return str(manifest.parent)


def draw(dataset, output="out"):
    identity = {key: value for key, value in dataset.items() if key != "input"}
    return job("subset", {"kind": "data", "dataset": identity}, output)


def one_line(capsys, place, output="out"):
    """Return the error; check that it is one line and that nothing stands in the output."""
    message = capsys.readouterr().err
    assert message.startswith("ltpipe: error: ")
    assert message.count("\n") == 1
    left = [path for path in (place / output).rglob("*") if path.is_file()]
    assert left == []
    return message


def test_the_folder_is_fine_as_it_is(place):
    assert draw(FOLDER) == 0


def test_a_missing_data_set(place, capsys):
    assert draw({**FOLDER, "path": "nowhere"}) == 2
    assert "nowhere does not exist" in one_line(capsys, place)
    assert not (place / "out").exists()


def test_a_missing_cifar_says_what_to_put_where(place, capsys, monkeypatch):
    import urllib.request

    def refuse(*_args, **_kwargs):
        raise OSError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    assert draw({"source": "cifar10", "imbalance": 100.0}) == 2
    message = one_line(capsys, place)
    assert "cifar-10" in message
    assert "LTPIPE_DATA" in message or "data.root" in message


def test_a_class_with_no_training_sample(place, capsys):
    for path in (place / "pets/train/dog").iterdir():
        path.unlink()
    assert draw(FOLDER) == 2
    assert "dog" in one_line(capsys, place)


def test_an_unreadable_image(place, capsys):
    assert draw(FOLDER, "data") == 0
    capsys.readouterr()
    path = place / "pets/train/cat/3.png"
    path.write_bytes(path.read_bytes()[:60])
    spec = {"kind": "stage1", "dataset": FOLDER, "backbone": CE, "seed": 0}
    assert job("train", spec, data=made("data")) == 2
    assert "3.png" in one_line(capsys, place)


def test_images_that_changed_since_the_draw(place, capsys):
    assert draw(FOLDER, "data") == 0
    capsys.readouterr()
    for path in (place / "pets/train/cat").iterdir():
        path.rename(place / "pets/train/dog" / f"was-{path.name}")
    Image.new("RGB", (9, 9)).save(place / "pets/train/cat/new.png")
    spec = {"kind": "stage1", "dataset": FOLDER, "backbone": CE, "seed": 0}
    assert job("train", spec, data=made("data")) == 2
    assert "others than those that were drawn; run again" in one_line(capsys, place)


@pytest.mark.parametrize(
    ("features", "labels", "message"),
    [
        (np.full((4, 2), np.nan), [0, 1, 0, 1], "NaN"),
        (np.zeros((4, 2)), [0, 1, 0], "4"),
        (np.zeros((4, 2)), [0, -1, 0, 1], "negative"),
        (np.zeros((4, 2)), [0, 2, 0, 2], "class 1"),
        (np.zeros((4, 2)), [0.5, 1, 0, 1], "whole|integer"),
    ],
)
def test_bad_embeddings(place, capsys, features, labels, message):
    np.savez(place / "a.npz", features=features, labels=np.array(labels))
    dataset = {"source": "features", "stores": {"a": {"train": "a.npz", "test": "a.npz"}}}
    assert draw(dataset) == 2
    import re

    assert re.search(message, one_line(capsys, place))


def stage2_inputs(place):
    for number, role in enumerate(("ce", "kps")):
        make_store(place / role, number)
    return {"features.ce": "ce", "features.kps": "kps"}


def finish(*folders):
    """Leave manifests, as if the folders had been written as they are."""
    for folder in folders:
        write_manifest(Path(folder), spec={}, modules={}, inputs={}, run_info={})


SPEC = {"kind": "stage2", "method": {"kind": "ffn", "epochs": 1}, "groups": "ranks", "seed": 0}


def test_a_truncated_feature_file(place, capsys):
    inputs = stage2_inputs(place)
    path = place / "kps/train.h5"
    finish("ce", "kps")
    path.write_bytes(path.read_bytes()[:-300])
    assert job("classify", SPEC, **inputs) == 2
    assert "kps/train.h5" in one_line(capsys, place)


def test_nan_in_cached_features(place, capsys):
    inputs = stage2_inputs(place)
    with h5py.File(place / "ce/test.h5", "a") as file:
        values = file["features"][()]
        values[0, 0] = np.nan
        file["features"][...] = values
        import zlib

        file["features"].attrs["crc32"] = zlib.crc32(values.tobytes())
    finish("ce", "kps")
    assert job("classify", SPEC, **inputs) == 2
    assert "ce/test.h5: features holds NaN" in one_line(capsys, place)


def test_a_damaged_subset_and_damaged_weights(place, capsys):
    dataset = dict(DIGITS)
    assert draw(dataset, "data") == 0
    capsys.readouterr()
    whole = Path(made("data"), "subset.h5").read_bytes()
    Path(made("data"), "subset.h5").write_bytes(whole[:-500])
    spec = {"kind": "stage1", "dataset": dataset, "backbone": CE, "seed": 0}
    assert job("train", spec, data=made("data")) == 2
    assert "subset.h5" in one_line(capsys, place)
    Path(made("data"), "subset.h5").write_bytes(whole)
    (place / "stage1").mkdir()
    (place / "stage1/model.safetensors").write_bytes(b"no weights")
    finish("stage1")
    spec = {"kind": "features", "dataset": dataset, "backbone": CE, "features": {}, "seed": 0}
    assert job("embed", spec, stage1="stage1", data=made("data")) == 2
    assert "model.safetensors: damaged" in one_line(capsys, place)
