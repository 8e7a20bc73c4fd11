"""Bundles on embeddings from elsewhere take features and no images."""

from __future__ import annotations

import h5py
import numpy as np
import pytest

from ltpipe.bundles.export import export_bundle
from ltpipe.cli.program import main
from ltpipe.data import drawing
from ltpipe.data.longtail import class_counts
from ltpipe.features import importing
from ltpipe.predict import load
from ltpipe.stage2.ffn import job as ffn
from ltpipe.stage2.simple import classifier
from ltpipe.utils.errors import InputError
from tests.bundles.conftest import recorded
from tests.support import run_job


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    """Two extractors' features of the same samples, their stores, the test features by role."""
    base = tmp_path_factory.mktemp("elsewhere")
    draws = np.random.default_rng(0)
    sizes = {"train": class_counts(4, 30, 10), "test": [10] * 4}
    files, test = {}, {}
    for role in ("ce", "kps"):
        centres = draws.normal(size=(4, 6)) * 2
        for split, numbers in sizes.items():
            labels = np.repeat(np.arange(4), numbers)
            features = (centres[labels] + draws.normal(size=(len(labels), 6))).astype(np.float32)
            path = base / f"{role}-{split}.npz"
            np.savez(path, features=features, labels=labels)
            files.setdefault(role, {})[split] = str(path)
            test |= {role: features} if split == "test" else {}
    dataset = {"source": "features", "stores": files}
    run_job(drawing, {"kind": "data", "dataset": dataset}, base / "data")
    for role in files:
        spec = {"kind": "import", "dataset": dataset, "store": files[role], "seed": 0}
        run_job(importing, spec, base / role, data=base / "data")
    return base, files, test


def bundle_of(base, module, method, folder, **inputs):
    spec = {"kind": "stage2", "method": method, "groups": "ranks", "seed": 0}
    run_job(module, spec, base / folder, **{f"features.{k}": base / v for k, v in inputs.items()})
    export_bundle(base / folder, base / f"{folder}-bundle", onnx=folder == "one")
    return base / f"{folder}-bundle", recorded(base / folder)


@pytest.fixture(scope="module")
def one(elsewhere):
    method = {"kind": "classifier", "views": "plain", "epochs": 3}
    return bundle_of(elsewhere[0], classifier, method, "one", features="ce")


@pytest.fixture(scope="module")
def two(elsewhere):
    method = {"kind": "ffn", "views": "plain", "initial": "random", "epochs": 3}
    return bundle_of(elsewhere[0], ffn, method, "two", ce="ce", kps="kps")


def test_arrays_and_files_of_one_extractor(one, elsewhere, tmp_path):
    _, files, test = elsewhere
    folder, (expected, scores) = one
    predictor = load(folder, "cpu")
    assert not predictor.takes_images and predictor.roles == ["features"]
    np.save(tmp_path / "f.npy", test["ce"])
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file["features"] = test["ce"]
    for given in (test["ce"], {"features": test["ce"]}, files["ce"]["test"], tmp_path / "f.npy",
                  tmp_path / "f.h5"):  # fmt: skip
        labels, probabilities = predictor.predict(given, batch_size=7)
        assert np.array_equal(labels, expected)
        np.testing.assert_allclose(probabilities, scores, rtol=1e-4, atol=1e-6)
    assert predictor.description["onnx"]["inputs"] == ["features.features"]
    assert "It takes features, not images" in (folder / "README.md").read_text()


def test_two_extractors_by_role(two, elsewhere, capsys):
    _, files, test = elsewhere
    folder, (expected, _) = two
    assert np.array_equal(load(folder, "cpu").predict(test).labels, expected)
    given = [f"{role}={files[role]['test']}" for role in ("kps", "ce")]
    assert main(["predict", str(folder), *given, "--device", "cpu"]) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert head == "row,label_1,probability_1"
    assert [row.split(",")[1] for row in rows] == [
        load(folder, "cpu").class_names[label] for label in expected
    ]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.zeros((3, 5), np.float32), r"features of features: \(N, 6\) numbers are needed"),
        (np.full((3, 6), np.nan, np.float32), "holds NaN or infinite values"),
        (["cat.jpg"], r"\(N, 6\) numbers are needed, this is list; the bundle has no backbone"),
        ("nowhere.npz", "feature file nowhere.npz does not exist"),
        ({"ce": np.zeros((3, 6))}, "takes features for features; it was given ce"),
    ],
)
def test_what_are_no_features_is_named(one, given, message):
    with pytest.raises(InputError, match=message):
        load(one[0], "cpu").predict(given)


def test_bad_lines_by_hand(one, two, elsewhere, tmp_path, capsys):
    _, files, test = elsewhere
    (tmp_path / "cat.jpg").write_bytes(b"no features")
    assert main(["predict", str(one[0]), str(tmp_path / "cat.jpg")]) == 2
    assert "features are read from .h5, .hdf5, .npz or .npy" in capsys.readouterr().err
    assert main(["predict", str(two[0]), files["ce"]["test"]]) == 2
    assert "this bundle takes features; write ce=FILE kps=FILE" in capsys.readouterr().err
    with pytest.raises(InputError, match="different numbers of rows"):
        load(two[0], "cpu").predict({"ce": test["ce"], "kps": test["kps"][:3]})
