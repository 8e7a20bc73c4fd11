"""From a mistake to its photo: which samples, in which order, with which neighbours."""

from __future__ import annotations

import base64
import io

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from ltpipe.cli.program import main
from ltpipe.evaluation.mistakes import find_mistakes
from ltpipe.plan.choosing import find_result
from ltpipe.stage2.core.results import read_predictions
from ltpipe.utils.errors import InputError
from tests import plans

LABELLED = {"red": (200, 20, 20), "green": (20, 200, 20), "blue": (20, 20, 200)}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Photos of three colours, one with another's label, run through a small pretrained network."""
    folder = tmp_path_factory.mktemp("photos")
    stream = np.random.default_rng(0)
    for name, colour in LABELLED.items():
        (folder / f"set/{name}").mkdir(parents=True)
        for place in range(12):
            pixels = np.clip(stream.normal(colour, 12, (40, 40, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"set/{name}/{place:02} ü.png")
    for place in (0, 1, 2):
        (folder / f"set/red/{place:02} ü.png").rename(folder / f"set/green/wrong {place}.png")
    values = {
        "experiment": "colours",
        "seeds": [0, 1],
        "datasets": {
            "photos": {
                "source": "folder",
                "path": "set",
                "test_fraction": 0.5,
                "input": {"size": [32, 32]},
            }
        },
        "backbones": {
            "net": {
                "system": "pretrained",
                "network": "timm:resnet10t",
                "weights": None,
                "size": [32, 32],
            }
        },
        "methods": {
            "kNN": {
                "kind": "ncm",
                "label": "Nearest mean",
                "backbones": {"features": "net"},
            }
        },
        "tables": {"main": {"rows": [{"method": "kNN"}]}},
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("LTPIPE_DATA", raising=False)
        plans.run_plan(plans.write_experiment(folder, values, "photos.yaml"))
    return folder


@pytest.fixture
def place(photos, monkeypatch):
    monkeypatch.chdir(photos)
    monkeypatch.delenv("LTPIPE_DATA", raising=False)
    return photos


def test_a_photo_with_a_wrong_label_comes_first_and_is_named(place, capsys):
    assert main(["mistakes", "photos.yaml", "Nearest mean", "--output", "wrong"]) == 0
    said = capsys.readouterr().out
    table = pd.read_csv(place / "wrong/mistakes.csv")
    misnamed = {path.name for path in (place / "set/green").glob("wrong*")}
    found = {name.removeprefix("green/") for name in table["sample"]} & misnamed
    assert found, "none of the misnamed photos fell into the test half"
    first = table.iloc[0]
    assert first["sample"].removeprefix("green/") in misnamed
    assert (first["truth"], first["predicted"]) == ("green", "red")
    assert first["probability"] > first["probability_of_truth"]
    assert f"{len(table)} of 17 wrong" in said
    page = (place / "wrong/mistakes.html").read_text()
    assert f"{first['sample']}</p>" in page
    picture = base64.b64decode(page.split("data:image/jpeg;base64,")[1].split('"')[0])
    red, green, _ = np.asarray(Image.open(io.BytesIO(picture)).convert("RGB")).mean((0, 1))
    assert red > green + 100


def test_predictions_carry_the_paths_of_the_photos(place):
    found = read_predictions(find_result(place / "photos.yaml", "kNN").folder)
    assert len(found.paths) == len(set(found.paths)) == 17
    for path, label in zip(found.paths, found.labels, strict=True):
        assert (place / "set" / path).is_file()
        assert path.split("/")[0] == found.class_names[label]


def test_neighbours_are_those_of_a_loop_over_cosines(place):
    from ltpipe.artifacts.reading import open_artifact
    from ltpipe.features.store import FeatureStore

    folder = find_result(place / "photos.yaml", "kNN").folder
    found = find_mistakes(folder)
    store = open_artifact(folder).inputs("features.")["features"]
    train, test = (FeatureStore.open(store.file(f"{name}.h5")) for name in ("train", "test"))
    for row, nearest in zip(found.place, found.nearest, strict=True):
        one = test.features[row].astype(float)
        cosines = [
            one @ other / np.linalg.norm(one) / np.linalg.norm(other)
            for other in train.features.astype(float)
        ]
        worst = min(cosines[place] for place in nearest)
        assert sum(value > worst + 1e-6 for value in cosines) < len(nearest)


def test_an_experiment_and_a_method_name_what_is_exported(place, tmp_path, capsys):
    options = ["--output", str(tmp_path / "bundle"), "--seed", "1"]
    assert main(["export", "photos.yaml", "kNN", *options]) == 0
    card = (tmp_path / "bundle/README.md").read_text()
    assert card.startswith("# Nearest mean on ") and "(seed 1)" in card
    folder = find_result(place / "photos.yaml", "kNN", seed=1).folder
    found = read_predictions(folder)
    capsys.readouterr()
    csv = tmp_path / "found.csv"
    assert main(["predict", str(tmp_path / "bundle"), "set", "--csv", str(csv)]) == 0
    labels = pd.read_csv(csv).set_index("path")["label_1"]
    for path, predicted in zip(found.paths, found.predicted[0], strict=True):
        assert labels[f"set/{path}"] == found.class_names[predicted]


def test_show_maps_names_to_folders(place, capsys):
    assert main(["show", "photos.yaml"]) == 0
    said = capsys.readouterr().out
    folder = find_result(place / "photos.yaml", "kNN").folder
    assert f"  colours: kNN (Nearest mean) on photos\n    {folder.parent}/seed{{0,1}}\n" in said


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (("kNM",), r"no such method \(did you mean 'kNN'\?\); it has kNN"),
        (("kNN", "digits"), "--dataset digits: .* no such dataset"),
        (("kNN", None, 7), "--seed 7: kNN has the seeds 0, 1"),
    ],
)
def test_what_is_not_there_is_said_with_what_is(asked, message, place):
    with pytest.raises(InputError, match=message):
        find_result(place / "photos.yaml", *asked)
