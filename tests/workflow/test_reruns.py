"""What is planned, and that equal plans give equal bytes; test_changes.py has what changes do."""

from __future__ import annotations

import copy
import shutil
import subprocess
import sys

import pytest

from ltpipe.config.registry import module_of
from tests.workflow.workspace import EXPERIMENT, PRELOADED, REPORT, Workspace

pytestmark = pytest.mark.workflow

FFN = "Run FFN on digits-lt, seed 0"


def changed(**settings):
    """The experiment with other settings for FFN."""
    experiment = copy.deepcopy(PRELOADED)
    experiment["methods"]["FFN"].update(settings)
    return experiment


def test_the_plan_reads_well(workspace: Workspace):
    shutil.rmtree(workspace.work / "results")
    assert workspace.planned() == REPORT | {
        "Draw the training subset of digits-lt",
        "Train ce on digits-lt, seed 0",
        "Train kps on digits-lt, seed 0",
        "Cache the features of ce on digits-lt, seed 0",
        "Cache the features of kps on digits-lt, seed 0",
        "Run CE on digits-lt, seed 0",
        FFN,
    }


@pytest.mark.parametrize("target", ["stage1", "features", "stage2"])
def test_targets_stop_at_their_stage(workspace: Workspace, target):
    shutil.rmtree(workspace.work / "results")
    jobs = workspace.planned(target)
    assert not jobs & REPORT
    assert (FFN in jobs) == (target == "stage2")
    assert any(job.startswith("Cache") for job in jobs) == (target != "stage1")


def test_a_second_experiment_shares_the_backbones(workspace: Workspace):
    experiment = changed(learning_rate=0.1, initial="random")
    experiment["experiment"] = "other"
    workspace.write(experiment, "other.yaml")
    of_other = {title.replace("small", "other") for title in REPORT}
    assert workspace.planned(config="other.yaml") == {FFN} | of_other


def test_code_that_changed_after_planning_is_refused(workspace: Workspace):
    workspace.write(changed(w1=[0.5]))
    commands = workspace.snakemake("-n", "-p", "--until", "classify").stdout
    command = next(line.strip() for line in commands.splitlines() if "ltpipe classify" in line)
    workspace.append(module_of("method", "ffn"))
    command = command.partition("Shell command: ")[2].split(" > ")[0]
    command = command.replace("ltpipe classify", f"{sys.executable} -m ltpipe classify")
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=workspace.work,
        env=workspace.environment(),
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
