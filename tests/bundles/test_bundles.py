"""What a bundle holds, what it refuses, what people can give it."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from ltpipe.artifacts.manifest import write_sealed
from ltpipe.bundles import graph
from ltpipe.bundles.export import export_bundle
from ltpipe.bundles.format import DESCRIPTION, METHOD
from ltpipe.cli.program import main
from ltpipe.config.base import canonical_json
from ltpipe.data import images as data_images
from ltpipe.data.readers.digits import read_digits
from ltpipe.predict import load
from ltpipe.utils.errors import InputError
from tests.bundles.conftest import recorded


@pytest.fixture(scope="module")
def result(world):
    return world.result("ffn", {"w1": 0.4, "epochs": 3}, "ffn")


@pytest.fixture(scope="module")
def sweep(world):
    return world.result("ffn", {"w1": [0.2, 0.8], "epochs": 3}, "ffn-sweep")


@pytest.fixture(scope="module")
def exported(result, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "bundle"
    export_bundle(result, folder)
    return folder


@pytest.fixture
def bundle(exported, tmp_path):
    """A copy to damage."""
    return shutil.copytree(exported, tmp_path / "bundle")


@pytest.fixture
def files(images, tmp_path):
    """Eight of the test images as PNG files, some in a folder of their own."""
    folder = tmp_path / "pictures"
    (folder / "more").mkdir(parents=True)
    paths = []
    for number in range(8):
        paths.append(folder / ("more" if number > 4 else ".") / f"{number}.png")
        Image.fromarray(images[number, :, :, 0]).save(paths[-1])
    return folder, paths


def describe(folder):
    return json.loads((folder / DESCRIPTION).read_text())


def test_it_is_whole_by_itself(exported, result, images, tmp_path, monkeypatch):
    """Neither the results nor the data are needed; numbers say where it is from."""
    assert sorted(path.name for path in exported.iterdir()) == [
        "README.md",
        "backbone.ce.safetensors",
        "backbone.kps.safetensors",
        DESCRIPTION,
        METHOD,
    ]
    values = describe(exported)
    origin = values["provenance"]
    assert set(origin) == {
        "data",
        "method",
        *(f"{stage}.{role}" for stage in ("features", "stage1") for role in ("ce", "kps")),
    }
    assert origin["method"]["folder"] == "stage2/digits/ffn/0000000000/seed0"
    text = (exported / "README.md").read_text()
    assert "105 training samples" in text
    assert f"| accuracy | {values['metrics']['accuracy']:.4f} |" in text
    labels, _ = recorded(result)
    truth = read_digits().test.labels
    assert values["metrics"]["accuracy"] == pytest.approx(np.mean(labels == truth))
    monkeypatch.chdir(tmp_path)
    moved = shutil.copytree(exported, tmp_path / "elsewhere")
    assert np.array_equal(load(moved, "cpu").predict(images).labels, labels)


def test_a_point_is_chosen_and_never_guessed(sweep, images, tmp_path):
    with pytest.raises(InputError, match=r"sweep of 2 points; .*--point \(0: w1=0.2; 1: w1=0.8\)"):
        export_bundle(sweep, tmp_path / "b")
    for point in ("1", "w1=0.8"):
        export_bundle(sweep, tmp_path / "b", point=point, force=True)
        found = load(tmp_path / "b", "cpu").predict(images)
        expected, scores = recorded(sweep, 1)
        assert np.array_equal(found.labels, expected)
        np.testing.assert_allclose(found.probabilities, scores, rtol=1e-4, atol=1e-6)
    for point in ("2", "w1=0.5", "tau=1"):
        with pytest.raises(InputError, match="means none of the points"):
            export_bundle(sweep, tmp_path / "c", point=point)
    with pytest.raises(InputError, match="write a number, or NAME=VALUE"):
        export_bundle(sweep, tmp_path / "c", point="w1=much")


def test_a_seed_is_chosen_and_never_guessed(world, result, tmp_path):
    export_bundle(result.parent, tmp_path / "one")
    (result.parent / "seed7").mkdir(exist_ok=True)
    shutil.copyfile(result / "manifest.json", result.parent / "seed7/manifest.json")
    try:
        with pytest.raises(InputError, match="several seeds; choose by --seed one of seed0, seed7"):
            export_bundle(result.parent, tmp_path / "two")
        with pytest.raises(InputError, match="has no seed3"):
            export_bundle(result.parent, tmp_path / "two", seed=3)
        export_bundle(result.parent, tmp_path / "two", seed=0)
    finally:
        shutil.rmtree(result.parent / "seed7")


def test_nothing_is_overwritten_unasked(bundle, result, tmp_path):
    with pytest.raises(InputError, match="exists; name another --output, or replace it by --force"):
        export_bundle(result, bundle)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("years")
    with pytest.raises(InputError, match="is no bundle: --force replaces bundles alone"):
        export_bundle(result, tmp_path / "mine", force=True)
    before = describe(bundle)
    (bundle / "stale.bin").write_bytes(b"x")
    export_bundle(result, bundle, force=True)
    assert describe(bundle)["files"] == before["files"]
    assert not (bundle / "stale.bin").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "mine"]


def test_an_artifact_that_is_not_as_it_was_is_refused(world, result, tmp_path):
    copied = shutil.copytree(world.base, tmp_path / "results")
    mine = copied / result.relative_to(world.base)
    features = copied / "features/digits/kps/0000000000/seed0"
    manifest = json.loads((mine / "manifest.json").read_text())
    for named in manifest["inputs"].values():
        named["path"] = named["path"].replace(str(world.base), str(copied))
    write_sealed(mine, manifest)
    before = (features / "manifest.json").read_text()
    values = json.loads(before)
    values["spec"]["features"]["views"] = 2
    write_sealed(features, values)
    with pytest.raises(InputError, match=r"kps.* is not what .* was made from; run the experiment"):
        export_bundle(mine, tmp_path / "b")
    (features / "manifest.json").write_text(before)
    weights = mine / "models.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    with pytest.raises(InputError, match=r"models.safetensors: damaged"):
        export_bundle(mine, tmp_path / "b")
    with pytest.raises(InputError, match="no finished artifact; name a folder such as"):
        export_bundle(tmp_path, tmp_path / "b")
    with pytest.raises(InputError, match="is an artifact of 'features'; bundles are made of"):
        export_bundle(features, tmp_path / "b")
    assert not (tmp_path / "b").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["results"]


def _edit(bundle, **changes):
    values = describe(bundle) | changes
    (bundle / DESCRIPTION).write_text(json.dumps(values))


def _seal(bundle, **changes):
    values = describe(bundle) | changes
    del values["digest"]
    digest = hashlib.sha256(canonical_json(values).encode()).hexdigest()
    (bundle / DESCRIPTION).write_text(json.dumps({**values, "digest": digest}))


def _pipe(bundle):
    (bundle / DESCRIPTION).unlink()
    os.mkfifo(bundle / DESCRIPTION)


def _elsewhere(bundle, name):
    values = describe(bundle)
    (role, backbone), *_ = values["backbones"].items()
    outside = bundle.parent / "outside.safetensors"
    shutil.copy(bundle / backbone["file"], outside)
    backbones = {**values["backbones"], role: {**backbone, "file": name}}
    _seal(bundle, backbones=backbones)


def _tamper(bundle):
    tensors = load_file(bundle / METHOD)
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, bundle / METHOD)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_tamper, "method.safetensors: changed since it was exported"),
        (lambda b: (b / METHOD).unlink(), "method.safetensors: missing; copy the whole bundle"),
        (lambda b: _edit(b, format="ltpipe-bundle/9"), "format 'ltpipe-bundle/9', this version"),
        (lambda b: _edit(b, filters=[0.5]), "bundle.json: changed since it was exported"),
        (lambda b: _edit(b, files={}), "bundle.json: changed since it was exported"),
        (lambda b: (b / DESCRIPTION).write_text("{"), "bundle.json: not readable"),
        (lambda b: (b / DESCRIPTION).unlink(), "is no bundle: it has no bundle.json"),
        (_pipe, "bundle.json: not a regular file"),
        (lambda b: _elsewhere(b, "../outside.safetensors"), "of which it gives no hash"),
        (lambda b: _seal(b, files={"..": {"bytes": 1, "sha256": ""}}), "of which it gives no hash"),
        (lambda b: _seal(b, classes={"names": ["a"], "counts": [1]}), "10 probabilities for 1 cl"),
        (lambda b: _seal(b, method={"kind": "ncmm"}), "ncmm"),
        (lambda b: _seal(b, filters="none"), "bundle.json: filters: input should be a valid list"),
    ],
)
def test_a_changed_bundle_is_refused(bundle, damage, message):
    damage(bundle)
    with pytest.raises(InputError, match=message):
        load(bundle)


def test_the_card_may_be_edited(bundle):
    (bundle / "README.md").write_text("Ask Ada before you use this.")
    assert len(load(bundle, "cpu").class_names) == 10


def test_paths_pictures_and_arrays_are_one(exported, images, files):
    predictor = load(exported, "cpu")
    _, paths = files
    expected = predictor.predict(images[:8])
    pictures = [Image.open(path) for path in paths]
    arrays = [images[number, :, :, 0] for number in range(8)]
    mixed = [str(paths[0]), paths[1], pictures[2], *arrays[3:7], images[7]]
    for given in (paths, pictures, arrays, mixed, images[:8, :, :, 0]):
        labels, probabilities = predictor.predict(given)
        assert np.array_equal(labels, expected.labels)
        np.testing.assert_allclose(probabilities, expected.probabilities, atol=1e-6)
    assert expected.labels.dtype == np.int64 and expected.probabilities.dtype == np.float32
    np.testing.assert_allclose(expected.probabilities.sum(1), 1, atol=1e-5)


def test_batches_do_not_matter_and_none_is_none(exported, images):
    predictor = load(exported, "cpu")
    whole = predictor.predict(images[:40]).probabilities
    np.testing.assert_allclose(
        predictor.predict(images[:40], batch_size=7).probabilities, whole, atol=1e-6
    )
    labels, probabilities = predictor.predict([])
    assert labels.shape == (0,) and probabilities.shape == (0, 10)
    with pytest.raises(InputError, match="must be at least 1"):
        predictor.predict(images, batch_size=0)


def test_a_larger_colour_image_is_brought_to_size(exported, images, tmp_path):
    grey = Image.fromarray(images[0, :, :, 0])
    large = grey.resize((64, 64), Image.Resampling.NEAREST).convert("RGB")
    large.save(tmp_path / "large.png")
    small, found = load(exported, "cpu").predict([grey, tmp_path / "large.png"]).probabilities
    assert small.argmax() == found.argmax()
    np.testing.assert_allclose(found, small, atol=0.25)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("cat.png", "takes a list of images"),
        ([3], "image 0 is a int: a path, a Pillow image or a uint8 array is needed"),
        ([np.zeros((8, 8))], "image 0 is an array of float64 and shape"),
        ([np.zeros((8, 8, 4), np.uint8)], r"image 0 is an array of uint8 and shape \(8, 8, 4\)"),
        (np.zeros(8, np.uint8), r"images are an array of shape \(8,\)"),
        (["nowhere.png"], "image nowhere.png can't be read: No such file"),
    ],
)
def test_what_is_no_image_is_named(exported, given, message):
    with pytest.raises(InputError, match=message):
        load(exported, "cpu").predict(given)


def test_devices_that_are_not_there(exported):
    with pytest.raises(InputError, match="device must be auto, cpu or cuda, not 'tpu'"):
        load(exported, "tpu")
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="torch sees no such CUDA device"):
            load(exported, "cuda:1")


def test_predicting_by_hand(exported, files, images, tmp_path, capsys):
    folder, paths = files
    expected = load(exported, "cpu").predict(images[:8])
    target = tmp_path / "out.csv"
    line = ["predict", str(exported), str(folder), "--device", "cpu"]
    assert main([*line, "--csv", str(target), "--top", "3", "--probabilities"]) == 0
    assert capsys.readouterr() == ("", "")
    head, *rows = target.read_text().splitlines()
    assert head.startswith("path,label_1,probability_1,label_2") and head.endswith(",p_8,p_9")
    assert [row.split(",")[0] for row in rows] == [str(path) for path in sorted(paths)]
    for row, number in zip(rows, range(8), strict=True):
        cells = row.split(",")
        assert cells[1] == str(expected.labels[number])
        found = [float(cell) for cell in cells[7:]]
        np.testing.assert_allclose(found, expected.probabilities[number], rtol=1e-4, atol=1e-8)
    assert main([*line[:2], str(paths[0])]) == 0
    assert capsys.readouterr().out.count("\n") == 2


def test_a_table_can_not_be_written_over_a_folder(exported, files, tmp_path, capsys):
    assert main(["predict", str(exported), str(files[0]), "--csv", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("ltpipe: error: ") and "directory" in line
    assert list(tmp_path.parent.glob(f".{tmp_path.name}.*")) == []


def test_bad_images_by_hand(exported, files, tmp_path, capsys, monkeypatch):
    folder, paths = files
    bad = folder / "more/5.png"
    bad.write_bytes(paths[0].read_bytes()[:60])
    bomb = folder / "bomb.png"
    Image.new("L", (40, 40)).save(bomb)
    monkeypatch.setattr(data_images, "MAX_PIXELS", 1000)
    Image.fromarray(np.zeros((8, 8), np.uint16)).save(folder / "deep.png")
    line = ["predict", str(exported), str(folder), "--csv", str(tmp_path / "o.csv")]
    assert main(line) == 2
    assert not (tmp_path / "o.csv").exists()
    assert "ltpipe: error: image" in capsys.readouterr().err
    assert main([*line, "--skip-bad"]) == 0
    told = capsys.readouterr().err
    for path in (bad, bomb, folder / "deep.png"):
        assert f"skipped: image {path}" in told
    assert told.endswith("ltpipe: skipped 3 of 10 images\n")
    assert len((tmp_path / "o.csv").read_text().splitlines()) == 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere: no such file or folder"),
        (["{empty}"], "no images below it"),
        (["{image}", "--top", "11"], "--top 11: the bundle has 10 classes"),
    ],
)
def test_bad_lines_by_hand(exported, files, tmp_path, capsys, arguments, message):
    (tmp_path / "empty").mkdir()
    filled = [item.format(empty=tmp_path / "empty", image=files[1][0]) for item in arguments]
    assert main(["predict", str(exported), *filled]) == 2
    assert message in capsys.readouterr().err


def test_exporting_by_hand(result, tmp_path, capsys):
    target = tmp_path / "deep/bundle"
    assert main(["export", str(result), "--output", str(target)]) == 0
    assert f"card: {target / 'README.md'}" in capsys.readouterr().out
    assert main(["export", str(result), "--output", str(target)]) == 2
    assert "--force" in capsys.readouterr().err


def test_onnx_that_is_not_installed(result, tmp_path, monkeypatch):
    real = graph.importlib.import_module

    def without(name):
        if name == "onnxruntime":
            raise ImportError(name)
        return real(name)

    monkeypatch.setattr(graph.importlib, "import_module", without)
    with pytest.raises(InputError, match="onnxruntime: pip install onnx onnxruntime"):
        export_bundle(result, tmp_path / "b", onnx=True)
    assert not (tmp_path / "b").exists()


def test_the_script_of_the_page_runs(exported, result, images, tmp_path, monkeypatch, capsys):
    """That of docs/predict.md, with the bundle and the images that it names."""
    page = Path(__file__).resolve().parents[2] / "docs/predict.md"
    (script,) = re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(exported, "my-bundle")
    picture = Image.fromarray(images[1, :, :, 0])
    Image.fromarray(images[0, :, :, 0]).save("cat.png")
    names = {"picture": picture, "array": images[2]}
    exec(compile(script.replace("cat.jpg", "cat.png"), str(page), "exec"), names)
    labels, _ = recorded(result)
    assert capsys.readouterr().out.strip() == str([str(label) for label in labels[:3]])
