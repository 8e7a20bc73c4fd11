"""Profiles beside the default one, and what is read of Snakemake without its documentation."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from typing import Any

import pytest
import yaml

from ltpipe.plan.stages import STAGES
from tests.workflow.workspace import PUBLISH, REPOSITORY, Workspace

pytestmark = pytest.mark.workflow

NAMED = ["gpu", "slurm", "kubernetes"]


def profile(name: str) -> dict[str, Any]:
    folder = REPOSITORY / ("profiles" if name == "default" else "workflow/profiles") / name
    return yaml.safe_load((folder / "profile.yaml").read_text())


@pytest.mark.parametrize("name", NAMED)
def test_a_named_profile_sets_other_keys_than_the_default_one_and_knows_the_rules(name):
    values = profile(name)
    # Of two profiles, the default one wins key by key; what it needs must hold beside all others.
    assert not values.keys() & profile("default").keys()
    assert not values.keys() & {"rerun-incomplete", "rerun-triggers"}
    rules = {stage.rule for stage in STAGES.values()}
    assert set(values["set-resources"]) | set(values["set-threads"]) <= rules
    for resources in values["set-resources"].values():
        assert set(resources) <= {
            "gpu",
            "mem_mb",
            "nodes",
            "runtime",
            "tasks",
        }


@pytest.mark.parametrize("name", ["slurm", "kubernetes"])
def test_the_plug_in_of_a_cluster_knows_the_options(name):
    executor = profile(name)["executor"]
    pytest.importorskip(f"snakemake_executor_plugin_{executor.replace('-', '_')}")
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", "--executor", executor, "--help"],
        capture_output=True,
        text=True,
    )
    for key in profile(name).keys() - {"executor"}:
        assert f"--{key}" in done.stdout, key


def test_the_default_profile_holds_beside_a_named_one(workspace: Workspace):
    """Seen from another folder than the Snakefile's; a rule that is edited runs nothing."""
    rules = workspace.source / "workflow/rules/stages.smk"
    workspace.edit(
        rules, "            command=stage.command,\n", "            command=stage.kind,\n"
    )
    gpu = str(workspace.source / "workflow/profiles/gpu")
    assert workspace.planned("--profile", gpu) == set()
    # Both count: threads are the named one's.
    shutil.rmtree(workspace.work / "results/stage1")
    done = workspace.snakemake("-n", "-p", "stage1", "--profile", gpu)
    assert "using profile" in done.stderr.lower() and str(gpu) in done.stderr
    assert "profiles/default" in done.stderr
    assert re.findall(r"--processes=(\d) .*--threads (\d)", done.stdout) == [("1", "2")] * 2


def test_an_experiment_on_the_command_line_replaces_the_default(workspace: Workspace):
    assert not any("resnet8" in job or "seed 4" in job for job in workspace.planned("-F"))


def test_the_gpus_of_this_machine_are_the_limit_unless_another_is_given(workspace: Workspace):
    limits = []
    for options in ([], ["--resources", "gpu=2"]):
        done = workspace.snakemake("-R", "publish", *options, CUDA_VISIBLE_DEVICES="0,1,2")
        assert PUBLISH in done.stderr
        limits += re.findall(r"Provided resources: .*gpu\D+(\d+)", done.stderr)
    assert limits == ["3", "2"]
