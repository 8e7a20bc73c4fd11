"""The command line: help, lists, refusals."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ltpipe.cli.program import main
from ltpipe.config.experiment import load_experiment
from ltpipe.config.registry import KINDS, registered
from ltpipe.plan.layout import build_plan
from ltpipe.plan.stages import STAGES

REPOSITORY = Path(__file__).resolve().parents[2]
COMMANDS = ["list", "init", "show", "table", "compare", "explain", "export", "predict"]
COMMANDS += ["why", "verify", "gc"]
COMMANDS += [stage.command for stage in STAGES.values()]


@pytest.fixture
def subset_spec():
    (artifact,) = build_plan(load_experiment(REPOSITORY / "config/config.yaml")).of_kind("data")
    return artifact


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
    assert all(len(row["spec"]["code"]) == 10 and not row["done"] for row in rows)


def test_planning_imports_no_torch():
    rules = (REPOSITORY / "workflow/rules/common.smk").read_text()
    imports = "; ".join(re.findall(r"^from ltpipe\S+ import .+$", rules, re.MULTILINE))
    code = (
        "import sys; from pathlib import Path; import ltpipe.cli.program; "
        f"{imports}; "
        "from ltpipe.config.experiment import load_experiment; "
        "from ltpipe.plan.layout import build_plan; "
        f"build_plan(load_experiment(Path({str(REPOSITORY / 'config/config.yaml')!r}))); "
        "print([m for m in ('torch', 'pandas', 'sklearn', 'h5py') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_job_by_hand_leaves_an_artifact_with_its_manifest(subset_spec, tmp_path, capsys):
    folder = tmp_path / subset_spec.digest
    assert main(["subset", "--spec", subset_spec.spec_text, "--output", str(folder)]) == 0
    assert "drew 297 training samples of 10 classes (120 to 1 a class)" in capsys.readouterr().out
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["spec"] == subset_spec.spec
    assert list(manifest["outputs"]) == ["subset.h5"]
    assert sorted(path.name for path in folder.iterdir()) == ["manifest.json", "subset.h5"]


def bad(capsys, *arguments):
    """Run a command that must fail; return its one line."""
    assert main(list(map(str, arguments))) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("ltpipe: error: ")
    assert captured.err.count("\n") == 1
    return captured.err


def test_other_code_than_planned_is_refused(subset_spec, tmp_path, capsys):
    folder = tmp_path / subset_spec.digest
    spec = json.dumps({**subset_spec.spec, "code": "0123456789"})
    message = bad(capsys, "subset", "--spec", spec, "--output", folder)
    assert "changed after this job was planned" in message
    assert not folder.exists()


def test_a_folder_that_is_not_named_by_the_spec_is_refused(subset_spec, tmp_path, capsys):
    for spec, name in (
        (subset_spec.spec, "0123456789"),
        (subset_spec.spec, f"{subset_spec.digest}/seed0"),
        ({**subset_spec.spec, "outside": {"files": "other"}}, subset_spec.digest),
        ({**subset_spec.spec, "seed": 1}, subset_spec.digest),
    ):
        folder = tmp_path / name
        message = bad(capsys, "subset", "--spec", json.dumps(spec), "--output", folder)
        assert "the digest of --spec" in message
        assert not folder.exists()


def test_bad_specs_are_refused(tmp_path, capsys):
    folder = tmp_path / "out"
    assert "not JSON" in bad(capsys, "subset", "--spec", "{", "--output", folder)
    message = bad(capsys, "subset", "--spec", '{"kind":"stage1"}', "--output", folder)
    assert '"kind": "data"' in message
    assert not folder.exists()


def test_missing_inputs_are_refused(tmp_path, capsys):
    training = build_plan(load_experiment(REPOSITORY / "config/config.yaml")).of_kind("stage1")[0]
    folder = tmp_path / training.digest / f"seed{training.spec['seed']}"
    arguments = ["train", "--spec", training.spec_text, "--output", folder]
    assert "write ROLE=FOLDER" in bad(capsys, *arguments, "--input", "data")
    message = bad(capsys, *arguments, "--input", f"data={tmp_path}")
    assert "there is no finished artifact" in message
    assert "the roles must be data" in bad(capsys, *arguments)
    other = tmp_path / "data/0123456789"
    other.mkdir(parents=True)
    (other / "manifest.json").write_text("{}")
    message = bad(capsys, *arguments, "--input", f"data={other}")
    assert f"must be the artifact {training.inputs['data'].digest}" in message
    assert not folder.exists()


def test_a_device_that_is_not_there_is_refused(tmp_path, capsys):
    training = build_plan(load_experiment(REPOSITORY / "config/config.yaml")).of_kind("stage1")[0]
    subset = training.inputs["data"]
    data = tmp_path / "data" / subset.digest
    assert main(["subset", "--spec", subset.spec_text, "--output", str(data)]) == 0
    capsys.readouterr()
    folder = tmp_path / training.digest / f"seed{training.spec['seed']}"
    arguments = ["train", "--spec", training.spec_text, "--output", folder]
    message = bad(capsys, *arguments, "--input", f"data={data}", "--device", "tpu")
    assert "device must be auto, cpu or cuda" in message
    assert not folder.exists()


def test_table_of_an_experiment_that_was_not_run(tmp_path, capsys):
    assert "run the experiment first" in bad(capsys, "table", tmp_path)
