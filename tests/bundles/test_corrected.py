"""Bundles with held-out samples: other class priors and sets of classes, in Python and the CLI."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from PIL import Image

from ltpipe.bundles.export import export_bundle
from ltpipe.cli.program import main
from ltpipe.predict import load

HEAD = {"head": {"kind": "classifier", "backbones": {"features": "ce"}, "epochs": 5}}


@pytest.fixture(scope="module")
def bundle(world, tmp_path_factory):
    settings = {"backbones": {"ce": "ce"}, "members": HEAD}
    result = world.result("calibrated", settings, "corrected")
    folder = tmp_path_factory.mktemp("corrected") / "bundle"
    export_bundle(result, folder)
    return folder


def test_sets_and_priors_of_a_bundle(bundle, images):
    predictor = load(bundle, "cpu")
    found = predictor.predict(images)
    corrected = predictor.corrected()
    small, large = (corrected.sets(found.probabilities, share) for share in (0.5, 0.9))
    assert (large >= small).all() and large.sum() > small.sum()
    adapted, prior = corrected.adapted(found.probabilities)
    np.testing.assert_allclose(adapted.sum(1), 1, atol=1e-5)
    # At the fixed point the mean posterior is the prior, but for a hundredth of a sample a class.
    np.testing.assert_allclose(adapted.mean(0), prior, atol=0.02)


def test_the_command_adapts_and_makes_sets(bundle, images, tmp_path, capsys):
    for number, image in enumerate(images[:12]):
        Image.fromarray(np.asarray(image).squeeze()).save(tmp_path / f"{number:02}.png")
    output = tmp_path / "table.csv"
    command = ["predict", str(bundle), str(tmp_path), "--csv", str(output), "--device", "cpu"]
    assert main([*command, "--sets", "0.9", "--adapt"]) == 0
    assert "estimated shares" in capsys.readouterr().err
    with output.open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12 and list(rows[0]) == ["path", "label_1", "probability_1", "set"]
    names = set(load(bundle, "cpu").class_names)
    assert all(set(row["set"].split("; ")) <= names | {""} for row in rows)
    assert main([*command, "--sets", "1.5"]) != 0
    assert "between 0 and 1" in capsys.readouterr().err


def test_other_bundles_have_neither(world, tmp_path, images, capsys):
    result = world.result("backbone-head", {}, "plain-head")
    export_bundle(result, tmp_path / "bundle")
    Image.fromarray(np.asarray(images[0]).squeeze()).save(tmp_path / "one.png")
    command = ["predict", str(tmp_path / "bundle"), str(tmp_path / "one.png"), "--adapt"]
    assert main(command) != 0
    assert "calibrated" in capsys.readouterr().err
