"""`ltpipe why`: what an artifact was made from, and what its nearest relative differs in."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from ltpipe.artifacts.manifest import write_sealed
from ltpipe.artifacts.relatives import Tree, differences, nearest
from ltpipe.cli.program import main
from ltpipe.plan.specs import digest_of
from tests import plans
from tests.artifacts.older import OLD_CODE, by_older_code, by_version_0_1_0


def stage2(method: str) -> Path:
    for path in Path("results/stage2").rglob("manifest.json"):
        if json.loads(path.read_text())["spec"]["method"]["kind"] == method:
            return path.parent
    raise AssertionError(method)


def why(capsys, *arguments) -> str:
    capsys.readouterr()
    assert main(["why", *map(str, arguments), "--catalogue", str(plans.CATALOGUE)]) == 0
    return capsys.readouterr().out


def test_it_says_what_an_artifact_was_made_from(tiny, capsys):
    folder = stage2("classifier")
    said = why(capsys, folder)
    assert said == why(capsys, folder / "metrics.csv") == why(capsys, folder.resolve())
    assert f"{folder}: stage2\n" in said
    assert '"kind":"classifier"' in said
    assert "  features.features: results/features/mine/net/" in said
    assert "on cpu" in said and "torch" in said
    assert "its code is as it was" in said
    drawn = next(Path("results/data").rglob("manifest.json"))
    contents = json.loads(drawn.read_text())["spec"]["outside"]["files"]
    assert f"  outside files: {contents[:10]}\n" in why(capsys, drawn.parent)


def test_a_report_by_the_path_for_people(tiny, capsys):
    (folder,) = Path("results/experiments/tiny").glob("*")
    assert main(["publish", str(folder)]) == 0
    assert why(capsys, "results/experiments/tiny/latest") == why(capsys, folder)


def test_old_and_new_settings(tiny, capsys):
    values = plans.changed(methods={"Linear": {"epochs": 5, "momentum": 0.5}})
    path = plans.write_experiment(tiny, values, "new.yaml")
    said = why(capsys, stage2("classifier"), path)
    assert "no experiment named here asks for it" in said
    assert "  setting method.epochs: 2 -> 5\n" in said
    assert "  setting method.momentum: not set -> 0.5\n" in said
    # The one that is asked for is not there yet, and says the same from its side.
    (cell,) = [c for c in plans.plan_of(path).of_kind("stage2") if c.spec["method"].get("momentum")]
    said = why(capsys, cell.folder, path)
    assert "not there; it will be made: Run Linear on mine, seed 0" in said
    assert "  setting method.epochs: 2 -> 5\n" in said
    assert "adopt" not in said
    assert "the experiment asks for it: Run NCM" in why(capsys, stage2("ncm"), path)


def test_an_experiment_lists_what_is_missing_and_why(tiny, capsys):
    assert "nothing is missing: all 5" in why(capsys, tiny / "experiment.yaml")
    values = plans.changed(methods={"Linear": {"epochs": 5}}, seeds=[0, 1])
    path = plans.write_experiment(tiny, values, "new.yaml")
    said = why(capsys, path)
    plan = plans.plan_of(path)
    missing = [cell for cell in plan.artifacts.values() if not Path(cell.folder).exists()]
    assert f"{len(missing) + 1} of {len(plan.artifacts) + 1} artifacts are missing" in said
    for cell in missing:
        assert f"  {cell.folder}\n" in said
    assert said.count("setting method.epochs: 2 -> 5\n") == 1
    # A seed of its own has no relative.
    assert "nothing of its names and seed is there" in said
    # Most upstream first, the report last.
    assert said.index("stage2: ") < said.index("report: 1\n")
    assert "of what it shows are others" in said


def test_the_changed_module_and_no_other(tiny, capsys):
    by_older_code()
    said = why(capsys, tiny / "experiment.yaml")
    assert "5 of 5 artifacts are missing" in said
    assert "data: 1\n" in said and "  made from data, which will be made\n" in said
    # The two classifiers may be told of together, where they took as long.
    assert said.count(": changed\n") in (4, 5)
    assert said.count("only code differs: `ltpipe adopt` takes it over (") in (3, 4)
    (cell,) = plans.plan_of(tiny / "experiment.yaml").of_kind("import")
    said = why(capsys, cell.folder, tiny / "experiment.yaml")
    assert said.count(": changed\n") == 2, "its own module and that of its input"
    assert f"  data: {cell.inputs['data'].folder} (not there)\n" in said
    older = stage2("ncm")
    said = why(capsys, older, tiny / "experiment.yaml")
    assert f"code {OLD_CODE}" in said and "its code has changed since (now " in said
    assert "in its place stands " in said


def test_modules_that_came_went_and_moved(tiny, capsys):
    by_older_code()
    path = stage2("ncm") / "manifest.json"
    manifest = json.loads(path.read_text())
    modules = manifest["modules"]
    name = next(iter(modules))
    modules["ltpipe.gone"] = "1" * 64
    came = "ltpipe.stage2.simple.ncm"
    del modules[came]
    moved = next(key for key in modules if key.startswith("ltpipe.stage2.core.") and key != name)
    modules["ltpipe.elsewhere"] = modules.pop(moved)
    write_sealed(path.parent, manifest)
    said = why(capsys, tiny / "experiment.yaml")
    assert "module ltpipe.gone: used no more\n" in said
    assert f"module {came}: new\n" in said
    assert moved not in said and "ltpipe.elsewhere" not in said


def test_files_from_outside_by_name(tiny, capsys):
    with np.load("train.npz") as file:
        np.savez("train.npz", features=file["features"] + 1, labels=file["labels"])
    said = why(capsys, tiny / "experiment.yaml")
    assert "    file net/train: changed\n" in said
    assert "test" not in said
    # Where the listing of what was there is gone, the contents tell that they differ.
    shutil.rmtree("results/fingerprints")
    assert "files from outside (files): contents " in why(capsys, tiny / "experiment.yaml")


def test_version_0_1_0(tiny, capsys):
    by_version_0_1_0()
    said = why(capsys, stage2("ncm"), tiny / "experiment.yaml")
    assert "version 0.1.0 made it; `ltpipe adopt EXPERIMENT.yaml` takes" in said
    said = why(capsys, tiny / "experiment.yaml")
    assert "setting" not in said
    assert said.count("`ltpipe adopt` takes it over") in (3, 4)


def test_begun_and_not_finished(tiny, capsys):
    folder = stage2("ncm")
    (folder / "manifest.json").unlink()
    said = why(capsys, folder, tiny / "experiment.yaml")
    assert "not finished; it will be made: Run NCM on mine, seed 0" in said
    shutil.rmtree(folder)
    said = why(capsys, folder, tiny / "experiment.yaml")
    assert "not there; it will be made" in said and "(there)\n" in said


def test_the_nearest_of_several_relatives(tiny):
    """The one that differs in code alone stands before those that differ in settings."""
    plan = plans.plan_of(tiny / "experiment.yaml")
    (cell,) = [c for c in plan.of_kind("stage2") if c.spec["method"]["kind"] == "ncm"]
    by_older_code()
    older = stage2("ncm")
    manifest = json.loads((older / "manifest.json").read_text())
    for distance, extra in (("cosine", {}), ("euclidean", {"centred": False})):
        manifest["spec"]["method"] |= {"distance": distance, **extra}
        other = older.parents[1] / digest_of(manifest["spec"]) / "seed0"
        other.mkdir(parents=True)
        write_sealed(other, manifest)
    tree = Tree(Path("results"))
    found = nearest(cell, tree)
    assert found is not None and found.place.folder == older and found.only_code
    shutil.rmtree(older)
    found = nearest(cell, Tree(Path("results")))
    assert found is not None and not found.only_code
    assert found.settings == ['setting method.distance: "cosine" -> not set']


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ({"a": 1}, {"a": 1}, []),
        ({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}}, [("a.c", "2", "3")]),
        ({"a": 1}, {}, [("a", "1", "not set")]),
        ({"a": [1, 2]}, {"a": [1, 3]}, [("a", "[1,2]", "[1,3]")]),
        ({"a": [{"b": 1}, {"b": 2}]}, {"a": [{"b": 1}, {"b": 3}]}, [("a[1].b", "2", "3")]),
        ({"a": [{"b": 1}]}, {"a": []}, [("a", '[{"b":1}]', "[]")]),
    ],
)
def test_differences_of_settings(old, new, expected):
    assert list(differences(old, new)) == expected


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("results/stage2/mine/ncm/0123456789/seed0", "there is no finished artifact"),
        ("results/stage2", "no artifact; name a folder such as"),
        ("train.npz", "no results folder"),
        ("/nowhere/at/all", "no results folder"),
        ("nowhere.yaml", "nowhere.yaml"),
    ],
)
def test_paths_that_are_no_artifacts(tiny, tmp_path, monkeypatch, capsys, path, message):
    if "no results" in message:
        monkeypatch.chdir(tmp_path)
        Path("train.npz").touch()
    capsys.readouterr()
    assert main(["why", path, "--catalogue", str(plans.CATALOGUE)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
