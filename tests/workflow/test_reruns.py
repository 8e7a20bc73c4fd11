"""Each change to settings or code reruns what depends on it, and nothing else."""

from __future__ import annotations

import copy
import os
import shutil
import subprocess
import sys

import pytest

from tests.workflow.workspace import EXPERIMENT, PRELOADED, Workspace, titles

pytestmark = pytest.mark.workflow

REPORT = "Write the tables, figures and report of small"
FFN = "Run FFN on digits-lt, seed 0"
CE = "Run CE on digits-lt, seed 0"
KPS_CHAIN = {
    "Train kps on digits-lt, seed 0",
    "Cache the features of kps on digits-lt, seed 0",
    FFN,
    REPORT,
}


def changed(**settings):
    """The experiment with other settings for FFN."""
    experiment = copy.deepcopy(PRELOADED)
    experiment["methods"]["FFN"].update(settings)
    return experiment


def test_a_second_run_has_nothing_to_do(finished: Workspace):
    assert "Nothing to be done" in finished.snakemake().stderr


def test_the_plan_reads_well(workspace: Workspace):
    shutil.rmtree(workspace.work / "results")
    assert workspace.planned() == KPS_CHAIN | {
        "Draw the training subset of digits-lt",
        "Train ce on digits-lt, seed 0",
        "Cache the features of ce on digits-lt, seed 0",
        CE,
    }


@pytest.mark.parametrize(
    ("target", "kept"),
    [("stage1", "results/stage1"), ("features", "results/features"), ("stage2", "results/stage2")],
)
def test_targets_stop_at_their_stage(workspace: Workspace, target, kept):
    shutil.rmtree(workspace.work / "results")
    jobs = workspace.planned(target)
    assert REPORT not in jobs
    assert (FFN in jobs) == (target == "stage2")
    assert any(job.startswith("Cache") for job in jobs) == (target != "stage1")


def test_order_of_keys_and_comments_do_not_count(workspace: Workspace):
    path = workspace.write(dict(reversed(PRELOADED.items())))
    path.write_text("# a remark\n" + path.read_text())
    assert workspace.planned() == set()


def test_other_names_for_the_same_settings_share_every_artifact(workspace: Workspace):
    experiment = copy.deepcopy(PRELOADED)
    experiment["methods"]["Fusion"] = experiment["methods"].pop("FFN")
    experiment["tables"]["main"]["rows"][1]["method"] = "Fusion"
    workspace.write(experiment)
    assert workspace.planned() == {REPORT}


def test_two_values_swapped_count_and_swapped_back_do_not(workspace: Workspace):
    swapped = changed(momentum=2e-4, weight_decay=0.9)
    workspace.write(swapped)
    assert workspace.planned() == {FFN, REPORT}
    workspace.write(changed(momentum=0.9, weight_decay=2e-4))
    assert workspace.planned() == set()


def test_a_default_written_out_does_not_count(workspace: Workspace):
    workspace.write(changed(initial="kps", batch_size=64))
    assert workspace.planned() == set()


def test_another_grid_reruns_the_method_and_the_old_one_is_found_again(workspace: Workspace):
    workspace.write(changed(w1=[0.0, 0.25, 0.5]))
    assert titles(workspace.snakemake()) == {FFN, REPORT}
    workspace.write(PRELOADED)
    assert titles(workspace.snakemake()) == {REPORT}
    assert workspace.planned() == set()


def test_a_methods_code_reruns_the_method(workspace: Workspace):
    workspace.append("stage2/ffn.py")
    assert titles(workspace.snakemake()) == {FFN, REPORT}
    assert workspace.planned() == set()


def test_a_second_experiment_shares_the_backbones(workspace: Workspace):
    experiment = changed(learning_rate=0.1, initial="random")
    experiment["experiment"] = "other"
    workspace.write(experiment, "other.yaml")
    assert workspace.planned(config="other.yaml") == {FFN, REPORT.replace("small", "other")}
    assert workspace.planned() == set()


def test_code_that_changed_after_planning_is_refused(workspace: Workspace):
    workspace.write(changed(w1=[0.5]))
    commands = workspace.snakemake("-n", "-p", "--until", "classify").stdout
    command = next(line.strip() for line in commands.splitlines() if "ltpipe classify" in line)
    workspace.append("stage2/ffn.py")
    command = command.partition("Shell command: ")[2].split(" > ")[0]
    command = command.replace("ltpipe classify", f"{sys.executable} -m ltpipe classify")
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=workspace.work,
        env={**os.environ, "PYTHONPATH": str(workspace.source)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "changed after this job was planned" in done.stderr


def test_two_runs_from_scratch_give_equal_bytes(workspace: Workspace, finished: Workspace):
    """The first with jobs forked from one server, the second with processes of their own."""
    shutil.rmtree(workspace.work / "results")
    workspace.write(EXPERIMENT)
    workspace.snakemake("stage2")
    compared = 0
    for path in (finished.work / "results").rglob("*"):
        if path.name in {"subset.h5", "predictions.h5", "metrics.csv"} or path.match(
            "model*.safe*"
        ):
            other = workspace.work / path.relative_to(finished.work)
            assert path.read_bytes() == other.read_bytes(), path
            compared += 1
    assert compared == 9
