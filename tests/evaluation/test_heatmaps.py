"""Heat maps of a trained backbone on files, through the command."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from ltpipe.artifacts.manifest import write_manifest, write_sealed
from ltpipe.cli.program import main
from ltpipe.evaluation.heatmaps import open_backbone
from ltpipe.stage1 import hrjba
from tests.support import CE, DIGITS, draw, run_job, train


def manifest(folder, backbone, data):
    spec = {"kind": "stage1", "dataset": DIGITS, "backbone": backbone, "seed": 0}
    write_manifest(folder, spec=spec, modules={}, inputs={"data": data}, run_info={})


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    base = tmp_path_factory.mktemp("heatmaps")
    data = draw(base)
    train(base / "stage1", CE, data)
    manifest(base / "stage1", CE, data)
    for label in (0, 3):
        digits = load_digits()
        pixels = digits.images[digits.target == label][0] * 15.9
        Image.fromarray(pixels.astype(np.uint8)).resize((24, 24)).save(base / f"{label}.png")
    return base


def test_a_file_for_each_image(trained, tmp_path, capsys):
    images = [str(trained / "0.png"), str(trained / "3.png")]
    options = ["--output", str(tmp_path), "--untrained", "--channels", "2"]
    assert main(["explain", str(trained / "stage1"), *images, *options]) == 0
    names = ["0-grad-cam.png", "3-grad-cam.png"]
    assert capsys.readouterr().out.splitlines() == [str(tmp_path / name) for name in names]
    # The image, its map, the untrained network's, two channels.
    with Image.open(tmp_path / names[0]) as drawn:
        assert drawn.width / drawn.height == pytest.approx(5 * 2.3 / 2.7, rel=0.01)


def test_a_class_may_be_named(trained, tmp_path):
    command = ["explain", str(trained / "stage1"), str(trained / "0.png"), "--method", "cam"]
    assert main([*command, "--class", "3", "--output", str(tmp_path / "three")]) == 0
    assert main([*command, "--class", "7", "--output", str(tmp_path / "seven")]) == 0
    three, seven = (tmp_path / f"{name}/0-cam.png" for name in ("three", "seven"))
    assert three.read_bytes() != seven.read_bytes()


def test_a_branch_is_named_by_its_own_classes(trained, tmp_path):
    backbone = {**CE, "system": "hrjba-branch", "group": "tail", "tail_share": 0.3}
    spec = {"kind": "stage1", "dataset": DIGITS, "backbone": backbone, "seed": 0}
    run_job(hrjba, spec, tmp_path / "tail", data=trained / "data")
    manifest(tmp_path / "tail", backbone, trained / "data")
    assert open_backbone(tmp_path / "tail").names == ["7", "8", "9"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "0.png"], "nowhere: no trained backbone"),
        (["stage1", "absent.png"], "absent.png can't be read"),
        (["stage1", "0.png", "--class", "ten"], "knows no class 'ten'"),
        (["data", "0.png"], "no trained backbone"),
    ],
)
def test_what_cannot_be_drawn_is_one_error(trained, tmp_path, capsys, arguments, message):
    folder, image, *rest = arguments
    command = ["explain", str(trained / folder), str(trained / image), *rest]
    assert main([*command, "--output", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_weights_of_another_size_are_refused(trained, tmp_path, capsys):
    folder = tmp_path / "stage1"
    folder.mkdir()
    values = json.loads((trained / "stage1/manifest.json").read_text())
    values["spec"]["backbone"] |= {"system": "hrjba-branch", "group": "head"}
    write_sealed(folder, values)
    (folder / "model.safetensors").write_bytes((trained / "stage1/model.safetensors").read_bytes())
    assert main(["explain", str(folder), str(trained / "0.png")]) == 2
    assert "has 10 outputs for 4 classes" in capsys.readouterr().err
