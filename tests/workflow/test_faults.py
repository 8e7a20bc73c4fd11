"""What happens to a whole workflow: edits while it runs, two at once, parts that vanish."""

from __future__ import annotations

import shutil

import pytest

from ltpipe.config.registry import module_of
from tests.workflow.workspace import EXPERIMENT, REPORT, Workspace, titles, wait_for

pytestmark = pytest.mark.workflow

FFN = "Run FFN on digits-lt, seed 0"


def test_code_that_changes_while_jobs_queue_and_a_second_snakemake(workspace: Workspace):
    workspace.write(EXPERIMENT)
    results = workspace.work / "results"
    for stage in ("features", "stage2", "experiments"):
        shutil.rmtree(results / stage)
    process = workspace.started()
    locks = workspace.work / ".snakemake/locks"
    wait_for(lambda: locks.is_dir() and any(locks.iterdir()), process)
    # Features are being cached; the classifiers wait for them.
    wait_for(lambda: any((results / "logs/features").rglob("*.log")), process)
    workspace.append(module_of("method", "ffn"))

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
    assert {FFN, *REPORT} <= done
    assert not any(title.startswith(("Train", "Cache", "Draw")) for title in done)
    assert workspace.planned() == set()


def test_two_work_folders_on_one_results_folder(workspace: Workspace):
    other = Workspace(workspace.source, workspace.work.with_name("other"))
    other.work.mkdir()
    (other.work / "results").symlink_to(workspace.work / "results")
    shutil.copy(workspace.work / "experiment.yaml", other.work)
    shutil.rmtree(workspace.work / "results/features")
    process = workspace.started("features")
    logs = workspace.work / "results/logs/features"
    shutil.rmtree(logs)
    try:
        wait_for(lambda: any(logs.rglob("*.log")), process)
        second = other.snakemake("-R", "classify", check=False)
        assert second.returncode != 0
        (line,) = [line for line in second.stderr.splitlines() if "at work there already" in line]
        assert f"process {process.pid} on " in line and f"in {workspace.work}" in line
        assert "Traceback" not in second.stderr
    finally:
        _, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    # Nothing was deleted, and the folder is free again.
    assert other.planned() == set()
    assert "Nothing to be done" in other.snakemake().stderr


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
    # What was made from it is right by its path; who needs the file itself asks for its stage.
    assert workspace.planned() == set()
    (job,) = workspace.planned("stage1" if "stage1" in gone else "features")
    assert job.startswith(again)


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
    shutil.rmtree(path.parent)
    workspace.snakemake()
    assert workspace.planned() == set()


def test_what_a_killed_run_left_half_written_is_not_taken_for_whole(workspace: Workspace):
    (path,) = workspace.work.glob("results/stage2/digits-lt/ffn/*/seed0/manifest.json")
    whole = {file.name: file.read_bytes() for file in path.parent.iterdir()}
    path.unlink()
    (path.parent / "metrics.csv").write_text("point,parameters\n0,")
    (path.parent / ".predictions.h5.abc.tmp").write_bytes(b"half")
    assert workspace.planned("stage2") == {FFN}
    assert titles(workspace.snakemake("stage2")) == {FFN}
    for name in ("metrics.csv", "predictions.h5", "models.safetensors"):
        assert (path.parent / name).read_bytes() == whole[name]
