"""`ltpipe why`: what an artifact was made from and what exactly would make it be rebuilt."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from ltpipe.artifacts import manifest as provenance
from ltpipe.cli.program import main
from ltpipe.plan.entries import code_entries
from tests import plans


def stage2(method: str) -> Path:
    for path in Path("results/stage2").rglob("manifest.json"):
        if json.loads(path.read_text())["spec"]["method"]["kind"] == method:
            return path.parent
    raise AssertionError(method)


def why(capsys, *arguments) -> str:
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
    assert "nothing would make it be rebuilt" in said
    imported = next(Path("results/features").rglob("manifest.json")).parent
    assert "  file train.npz: SHA-256 " in why(capsys, imported)


def test_old_and_new_settings(tiny, capsys):
    values = plans.changed(methods={"Linear": {"epochs": 5, "momentum": 0.5}})
    path = plans.write_experiment(tiny, values, "new.yaml")
    said = why(capsys, stage2("classifier"), path)
    assert "no experiment named here asks for it" in said
    assert "  setting method.epochs: 2 -> 5\n" in said
    assert "  setting method.momentum: not set -> 0.5\n" in said
    # The one that is asked for is not there yet, and says the same from its side.
    (cell,) = [c for c in plans.plan_of(path).of_kind("stage2") if "epochs" in c.spec["method"]]
    said = why(capsys, cell.folder, path)
    assert "not there; it will be made: Run Linear on mine, seed 0" in said
    assert "  setting method.epochs: 2 -> 5\n" in said
    assert "the experiment asks for it: Run NCM" in why(capsys, stage2("ncm"), path)


def test_a_label_of_the_report(tiny, capsys):
    path = plans.write_experiment(tiny, {**plans.EXPERIMENT, "title": "Other"}, "new.yaml")
    assert "nothing would" in why(capsys, "results/experiments/tiny")
    said = why(capsys, "results/experiments/tiny", path)
    assert 'it would be rebuilt, because\n  setting title: "tiny" -> "Other"\n' in said


def test_the_changed_module_and_no_other(tiny, capsys, monkeypatch):
    real = provenance._read

    def edited(path, stamp):
        value, imported = real(path, stamp)
        return ("0" * 64 if path.name == "ncm.py" else value), imported

    monkeypatch.setattr(provenance, "_read", edited)
    said = why(capsys, stage2("ncm"))
    assert "it would be rebuilt, because\n  module ltpipe.stage2.simple.ncm: changed\n" in said
    assert said.count("module ltpipe") == 1
    assert "nothing would" in why(capsys, stage2("classifier"))
    assert f"{stage2('ncm')}: module ltpipe.stage2.simple.ncm: changed" in why(
        capsys, "results/experiments/tiny"
    )


def test_modules_that_came_and_went(tiny, capsys):
    path = stage2("ncm") / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["modules"]["ltpipe.stage2.core.one_backbone"]
    manifest["modules"]["ltpipe.gone"] = "0"
    manifest["code"] = provenance.identity_of_modules(manifest["modules"])
    path.write_text(json.dumps(manifest))
    said = why(capsys, path)
    assert "module ltpipe.stage2.core.one_backbone: new" in said
    assert "module ltpipe.gone: used no more" in said


def test_a_file_from_outside_and_all_that_follows_from_it(tiny, capsys):
    with np.load("train.npz") as file:
        np.savez("train.npz", features=file["features"] + 1, labels=file["labels"])
    said = why(capsys, stage2("ncm"))
    assert "it would be rebuilt, because\n" in said
    assert "results/features/mine/net/" in said
    assert "file train.npz from outside has changed, or is gone" in said
    # Made again: now the input is another one.
    (cell,) = plans.plan_of(tiny / "experiment.yaml").of_kind("import")
    assert plans.run_cell(cell) == 0
    said = why(capsys, stage2("ncm"))
    assert f"input features.features ({cell.folder}) was made again and came out otherwise" in said


def test_missing_parts(tiny, capsys):
    folder = stage2("ncm")
    (folder / "metrics.csv").unlink()
    assert "file metrics.csv is missing" in why(capsys, folder)
    shutil.rmtree(next(Path("results/features").rglob("manifest.json")).parent)
    said = why(capsys, folder)
    assert "input features.features" in said and "is not there" in said
    (folder / "manifest.json").unlink()
    said = why(capsys, folder, tiny / "experiment.yaml")
    assert "not finished; it will be made: Run NCM on mine, seed 0" in said


def test_the_verdict_is_that_of_the_plan(tiny):
    """The code identity that `why` compares is what rules pass on."""
    for cell in plans.plan_of(tiny / "experiment.yaml").artifacts.values():
        manifest = json.loads(Path(cell.folder, "manifest.json").read_text())
        assert manifest["code"] == provenance.code_identity(code_entries(cell.spec))


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("results/stage2/mine/ncm/0123456789/seed0", "there is no finished artifact"),
        ("results/stage2", "no artifact; name a folder such as"),
        ("train.npz", "no results folder"),
        ("/nowhere/at/all", "no results folder"),
    ],
)
def test_paths_that_are_no_artifacts(tiny, capsys, path, message):
    assert main(["why", path]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
