"""One job that makes several results: what lone jobs leave, each in its own folder."""

from __future__ import annotations

import copy
import json
from pathlib import Path

from ltpipe.artifacts.manifest import read_manifest
from ltpipe.cli.program import main
from ltpipe.stage2.core import base_classifier
from tests.plans import EXPERIMENT, plan_of, run_cell, write_embeddings, write_experiment


def experiment():
    values = {**copy.deepcopy(EXPERIMENT), "seeds": [0, 1]}
    common = {"backbones": {"features": "net"}, "initial": "linear"}
    values["methods"] |= {
        "Tau": {"kind": "tau-norm", **common},
        "Adjusted": {"kind": "logit-adjusted", **common},
        "Calibrated": {
            "kind": "calibrated",
            "backbones": {"features": "net"},
            "members": {
                "m": {"kind": "ncm", "backbones": {"features": "features"}},
            },
        },
    }
    return values


def prepared(folder, monkeypatch):
    """Return the results of a plan whose embeddings are imported below a folder."""
    folder.mkdir()
    monkeypatch.chdir(folder)
    write_embeddings(folder)
    plan = plan_of(write_experiment(folder, experiment()))
    for cell in plan.of_kind("data", "import"):
        assert run_cell(cell) == 0
    return plan.of_kind("stage2")


def together(cells, **specs):
    roles = [f"--input={role}={made.folder}" for role, made in cells[0].inputs.items()]
    jobs = [
        argument
        for cell in cells
        for argument in ("--spec", specs.get(cell.folder, cell.spec_text), "--output", cell.folder)
    ]
    return main(["classify", *jobs, *roles])


def outputs(cells):
    return {cell.folder: read_manifest(Path(cell.folder))["outputs"] for cell in cells}


def test_results_of_one_job_equal_those_of_lone_jobs(tmp_path, monkeypatch):
    alone = prepared(tmp_path / "alone", monkeypatch)
    assert [run_cell(cell) for cell in alone] == [0] * len(alone)
    expected = outputs(alone)

    cells = prepared(tmp_path / "together", monkeypatch)
    fits = []
    fitted = base_classifier._fitted
    monkeypatch.setattr(
        base_classifier, "_fitted", lambda *given: fits.append(given) or fitted(*given)
    )
    assert together(cells) == 0
    assert outputs(cells) == expected and len(expected) == 10
    # Of each seed one on all samples, which both methods start from, and one to choose tau by.
    assert len(fits) == 4
    assert not list(Path("results").rglob(".*.tmp"))


def test_one_that_fails_leaves_the_others_whole(tmp_path, monkeypatch, capsys):
    cells = prepared(tmp_path / "work", monkeypatch)
    broken = cells[1]
    spec = json.dumps({**broken.spec, "code": "0000000000"})
    assert together(cells, **{broken.folder: spec}) == 2
    error = capsys.readouterr().err
    assert f"{broken.folder}: the code that makes" in error
    assert f"1 of {len(cells)} artifacts were not made" in error
    assert not Path(broken.folder).exists()
    outputs([cell for cell in cells if cell is not broken])


def test_each_spec_needs_a_folder(tmp_path, monkeypatch, capsys):
    first, second = prepared(tmp_path / "work", monkeypatch)[:2]
    roles = [f"--input={role}={made.folder}" for role, made in first.inputs.items()]
    specs = ["--spec", first.spec_text, "--spec", second.spec_text]
    assert main(["classify", *specs, "--output", first.folder, *roles]) == 2
    assert "each artifact has one of both" in capsys.readouterr().err
