"""The command line: help, lists, refusals."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ltpipe.artifacts.manifest import code_identity
from ltpipe.cli.program import main
from ltpipe.config.experiment import load_experiment
from ltpipe.config.registry import KINDS, registered
from ltpipe.plan.layout import build_plan, code_entries

REPOSITORY = Path(__file__).resolve().parents[2]
COMMANDS = ["list", "init", "show", "table", "compare", "explain", "export", "predict"]
COMMANDS += ["why", "verify", "gc"]
COMMANDS += ["draw", "train", "embed", "import", "filter", "classify", "report"]


@pytest.fixture
def draw_cell():
    (cell,) = build_plan(load_experiment(REPOSITORY / "config/config.yaml")).of_kind("data")
    return cell


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for command in COMMANDS:
        assert f"\n    {command} " in text


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    assert "usage: ltpipe " + command in capsys.readouterr().out


def test_list_prints_catalogue_and_registry(capsys, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    assert main(["list"]) == 0
    text = capsys.readouterr().out
    for name in ("digits-lt", "resnet8-kps", "ffn-paper", "logit-fusion", "kps", "resnet56"):
        assert f"  {name} " in text
    lines = [line.strip() for line in text.splitlines()]
    for known in map(registered, KINDS):
        for name, entry in known.items():
            what = entry.summary + (f" ({entry.paper})" if entry.paper else "")
            assert any(line.startswith(f"{name} ") and line.endswith(what) for line in lines)
    assert "losses that settings may name" in lines


def test_show_prints_every_artifact(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    path = str(REPOSITORY / "config/config.yaml")
    assert main(["show", path]) == 0
    assert "stage1: 26 artifacts, 0 there" in capsys.readouterr().out
    assert main(["show", path, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) == 85
    assert all(len(row["code"]) == 10 and not row["done"] for row in rows)


def test_planning_imports_no_torch():
    rules = (REPOSITORY / "workflow/rules/common.smk").read_text()
    imports = "; ".join(re.findall(r"^from ltpipe\S+ import .+$", rules, re.MULTILINE))
    code = (
        "import sys; from pathlib import Path; import ltpipe.cli.program; "
        f"{imports}; "
        "from ltpipe.config.experiment import load_experiment; "
        "from ltpipe.plan.layout import build_plan, code_entries; "
        "from ltpipe.artifacts.manifest import code_identity; "
        f"plan = build_plan(load_experiment(Path({str(REPOSITORY / 'config/config.yaml')!r}))); "
        "[code_identity(code_entries(c.spec)) for c in plan.cells.values()]; "
        "print([m for m in ('torch', 'pandas', 'sklearn', 'h5py') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_job_by_hand_leaves_an_artifact_with_its_manifest(draw_cell, tmp_path, capsys):
    code = code_identity(code_entries(draw_cell.spec))
    folder = tmp_path / "out"
    assert (
        main(["draw", "--spec", draw_cell.spec_text, "--code", code, "--output", str(folder)]) == 0
    )
    assert "drew 297 training samples of 10 classes (120 to 1 a class)" in capsys.readouterr().out
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["spec"] == draw_cell.spec
    assert manifest["code"] == code
    assert list(manifest["outputs"]) == ["subset.h5"]
    assert sorted(path.name for path in folder.iterdir()) == ["manifest.json", "subset.h5"]


def bad(capsys, *arguments):
    """Run a command that must fail; return its one line."""
    assert main(list(map(str, arguments))) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("ltpipe: error: ")
    assert captured.err.count("\n") == 1
    return captured.err


def test_other_code_than_planned_is_refused(draw_cell, tmp_path, capsys):
    folder = tmp_path / "out"
    message = bad(
        capsys, "draw", "--spec", draw_cell.spec_text, "--code", "0123456789", "--output", folder
    )
    assert "changed after this job was planned" in message
    assert not folder.exists()


def test_bad_specs_are_refused(tmp_path, capsys):
    folder = tmp_path / "out"
    assert "not JSON" in bad(capsys, "draw", "--spec", "{", "--output", folder)
    message = bad(capsys, "draw", "--spec", '{"kind":"stage1"}', "--output", folder)
    assert '"kind": "data"' in message
    assert not folder.exists()


def test_missing_inputs_are_refused(tmp_path, capsys):
    cell = build_plan(load_experiment(REPOSITORY / "config/config.yaml")).of_kind("stage1")[0]
    folder = tmp_path / "out"
    arguments = ["train", "--spec", cell.spec_text, "--output", folder]
    assert "write ROLE=FOLDER" in bad(capsys, *arguments, "--input", "data")
    message = bad(capsys, *arguments, "--input", f"data={tmp_path}")
    assert "there is no finished artifact" in message
    assert not folder.exists()


def test_a_device_that_is_not_there_is_refused(draw_cell, tmp_path, capsys):
    cell = build_plan(load_experiment(REPOSITORY / "config/config.yaml")).of_kind("stage1")[0]
    message = bad(
        capsys, "train", "--spec", cell.spec_text, "--output", tmp_path / "o", "--device", "tpu"
    )
    assert "device must be auto, cpu or cuda" in message


def test_table_of_an_experiment_that_was_not_run(tmp_path, capsys):
    assert "run the experiment first" in bad(capsys, "table", tmp_path)
