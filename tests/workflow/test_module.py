"""The workflow as a module of another one."""

from __future__ import annotations

import subprocess
import sys

import pytest
import yaml

from tests.workflow.workspace import EXPERIMENT, REPOSITORY, Workspace, titles

pytestmark = pytest.mark.workflow

OUTER = """
module ltpipe:
    snakefile:
        {snakefile!r}
    config:
        config


use rule * from ltpipe as ltpipe_*


rule summary:
    default_target: True
    input:
        rules.ltpipe_report.input,
    output:
        "summary.txt",
    shell:
        "echo done > {{output}}"
"""


def test_another_workflow_uses_this_one_as_a_module(tmp_path):
    workspace = Workspace(REPOSITORY, tmp_path)
    workspace.write(EXPERIMENT)
    (tmp_path / "Snakefile").write_text(OUTER.format(snakefile=str(REPOSITORY / "Snakefile")))
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", "-n", "--configfile", "experiment.yaml", "--cores=1"],
        cwd=tmp_path,
        env=workspace.environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert {"Train ce on digits-lt, seed 0", "Run FFN on digits-lt, seed 0"} <= titles(done)
    assert "summary" in done.stdout


def test_the_catalogue_of_workflows_finds_what_it_looks_for():
    catalogue = yaml.safe_load((REPOSITORY / ".snakemake-workflow-catalog.yml").read_text())
    assert catalogue["usage"]["software-stack-deployment"]["conda"] is True
    named = catalogue["usage"]["mandatory-flags"]["flags"].split()[-1]
    assert (REPOSITORY / named).is_file()
    assert (REPOSITORY / "config/README.md").is_file()
    assert (REPOSITORY / "workflow/rules").is_dir()
