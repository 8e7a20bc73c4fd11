"""What happens to a whole workflow: edits while it runs, two at once, parts that vanish."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time

import pytest

from tests.workflow.workspace import EXPERIMENT, Workspace, titles

pytestmark = pytest.mark.workflow

FFN = "Run FFN on digits-lt, seed 0"
REPORT = "Write the tables, figures and report of small"


def started(workspace: Workspace, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "snakemake", "-s", str(workspace.source / "Snakefile")]
    command += ["--cores", "2", "--configfile", "experiment.yaml", *more]
    return subprocess.Popen(
        command,
        cwd=workspace.work,
        env={**os.environ, "PYTHONPATH": str(workspace.source), "CUDA_VISIBLE_DEVICES": ""},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(condition, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_code_that_changes_while_jobs_queue_and_a_second_snakemake(workspace: Workspace):
    workspace.write(EXPERIMENT)
    results = workspace.work / "results"
    for stage in ("features", "stage2", "experiments"):
        shutil.rmtree(results / stage)
    process = started(workspace)
    locks = workspace.work / ".snakemake/locks"
    wait_for(lambda: locks.is_dir() and any(locks.iterdir()), process)
    # Features are being cached; the classifiers wait for them.
    wait_for(lambda: any((results / "logs/features").rglob("*.log")), process)
    workspace.append("stage2/ffn.py")

    second = workspace.snakemake("stage2", check=False)
    assert second.returncode != 0
    assert "cannot be locked" in second.stderr
    assert "--unlock" in second.stderr

    _, errors = process.communicate(timeout=600)
    assert process.returncode != 0, errors
    (log,) = (results / "logs/stage2").glob("digits-lt/ffn/*/seed0.log")
    said = log.read_text()
    assert "changed after this job was planned" in said and said.count("\n") == 1
    assert not list((results / "stage2").glob("*/ffn/*/*/manifest.json"))
    # The other one was finished, or is made now; no backbone again.
    done = titles(workspace.snakemake())
    assert {FFN, REPORT} <= done
    assert not any(title.startswith(("Train", "Cache", "Draw")) for title in done)
    assert workspace.planned() == set()


@pytest.mark.parametrize(
    ("gone", "again"),
    [
        ("results/features/digits-lt/resnet8-kps/*/seed0/train.h5", "Cache the features of kps"),
        ("results/stage1/digits-lt/resnet8-kps/*/seed0/model.safetensors", "Train kps"),
    ],
)
def test_a_file_that_vanished_is_made_again(workspace: Workspace, gone, again):
    (path,) = workspace.work.glob(gone)
    path.unlink()
    planned = workspace.planned()
    assert any(title.startswith(again) for title in planned)
    assert {FFN, REPORT} <= planned
    assert not any(" ce " in title for title in planned)


def test_a_damaged_input_is_refused_with_the_way_out(workspace: Workspace):
    (path,) = workspace.work.glob("results/features/digits-lt/resnet8-kps/*/seed0/test.h5")
    data = bytearray(path.read_bytes())
    data[-2000] ^= 1
    path.write_bytes(data)
    experiment = {**EXPERIMENT, "methods": dict(EXPERIMENT["methods"])}
    experiment["methods"]["FFN"] = {**experiment["methods"]["FFN"], "epochs": 1}
    workspace.write(experiment)
    done = workspace.snakemake(check=False)
    assert done.returncode != 0
    logs = [log.read_text() for log in (workspace.work / "results/logs/stage2").rglob("*.log")]
    assert any("test.h5" in text and "delete" in text for text in logs)
    path.unlink()
    workspace.snakemake()
    assert workspace.planned() == set()


def test_what_a_killed_run_left_half_written_is_not_taken_for_whole(workspace: Workspace):
    (path,) = workspace.work.glob("results/stage2/digits-lt/ffn/*/seed0/manifest.json")
    whole = {file.name: file.read_bytes() for file in path.parent.iterdir()}
    path.unlink()
    (path.parent / "metrics.csv").write_text("point,parameters\n0,")
    (path.parent / ".predictions.h5.abc.tmp").write_bytes(b"half")
    assert workspace.planned() == {FFN, REPORT}
    assert titles(workspace.snakemake()) == {FFN, REPORT}
    for name in ("metrics.csv", "predictions.h5", "models.safetensors"):
        assert (path.parent / name).read_bytes() == whole[name]


@pytest.mark.parametrize("profile", ["slurm", "kubernetes"])
def test_profiles_of_clusters_can_be_read(profile):
    """What needs no cluster: valid YAML, known rules and options of Snakemake."""
    import yaml

    from tests.workflow.workspace import REPOSITORY

    folder = REPOSITORY / "workflow/profiles" / profile
    values = yaml.safe_load((folder / "profile.yaml").read_text())
    rules = "".join(path.read_text() for path in (REPOSITORY / "workflow/rules").glob("*.smk"))
    for key in ("set-resources", "set-threads"):
        for name, resources in values[key].items():
            assert f"rule {name}:" in rules
            if key == "set-resources":
                assert set(resources) <= {"gpu", "gpu_manufacturer", "mem_mb", "runtime"}
    assert values["executor"] == profile
    pytest.importorskip(f"snakemake_executor_plugin_{profile}")
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", "--executor", profile, "--help"],
        capture_output=True,
        text=True,
    )
    for key in values.keys() - {"executor"}:
        assert f"--{key}" in done.stdout, key
