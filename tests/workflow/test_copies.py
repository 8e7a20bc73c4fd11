"""Artifacts that came from another machine are taken up by what they hold."""

from __future__ import annotations

import json
import os
import shutil
import subprocess

import pytest

from tests.workflow.workspace import Workspace

pytestmark = pytest.mark.workflow

STAGES = ("data", "stage1", "features", "stage2", "experiments", "benchmarks")
CE = "Run CE on digits-lt, seed 0"
FFN = "Run FFN on digits-lt, seed 0"
REPORT = "Write the tables, figures and report of small"


@pytest.fixture
def elsewhere(finished: Workspace, tmp_path) -> Workspace:
    """Another machine: the sources and the experiment file, no results, no records."""
    other = Workspace(tmp_path / "source", tmp_path / "work")
    shutil.copytree(finished.source, other.source)
    other.work.mkdir()
    shutil.copy(finished.work / "experiment.yaml", other.work)
    return other


def inputs_newest(results) -> None:
    """Give every file a time such that whatever is made from something is older than it."""
    for age, stage in enumerate(STAGES):
        for path in (results / stage).rglob("*"):
            os.utime(path, (1.7e9 - 1000 * age, 1.7e9 - 1000 * age))


def test_a_copy_without_times_and_records_is_taken_as_it_is(finished, elsewhere: Workspace):
    command = ["cp", "-r", str(finished.work / "results"), str(elsewhere.work)]
    subprocess.run(command, check=True)
    assert elsewhere.planned() == set()
    inputs_newest(elsewhere.work / "results")
    assert elsewhere.planned() == set()
    for path in (elsewhere.work / "results").rglob("*"):
        os.utime(path, (1.8e9, 1.8e9) if "benchmarks" not in path.parts else (1, 1))
    assert elsewhere.planned() == set()
    done = elsewhere.snakemake()
    assert "Nothing to be done" in done.stderr
    # What is asked for by hand is still made, with all that follows.
    assert elsewhere.planned("--forcerun", "classify") == {CE, FFN, REPORT}
    assert len(elsewhere.planned("-F")) == 8


def test_a_copy_from_other_code_or_of_other_inputs_is_made_again(finished, elsewhere: Workspace):
    shutil.copytree(finished.work / "results", elsewhere.work / "results")
    elsewhere.append("stage2/ffn.py")
    assert elsewhere.planned() == {FFN, REPORT}
    # Even where files would look new enough, and also for targets before the report.
    assert elsewhere.planned("stage2") == {FFN}
    assert elsewhere.planned("stage1") == set()
    (path,) = (elsewhere.work / "results/features/digits-lt/resnet8-ce").rglob("manifest.json")
    manifest = json.loads(path.read_text())
    manifest["outputs"]["train.h5"] = "0" * 64
    path.write_text(json.dumps(manifest))
    assert elsewhere.planned() == {CE, FFN, REPORT}


def test_features_alone_are_enough_for_classifiers(finished, elsewhere: Workspace):
    shutil.copytree(finished.work / "results/features", elsewhere.work / "results/features")
    draw = "Draw the training subset of digits-lt"
    assert elsewhere.planned("stage2") == {draw, CE, FFN}
    elsewhere.snakemake("stage2")
    assert elsewhere.planned("stage2") == set()
    for path in (finished.work / "results/stage2").rglob("predictions.h5"):
        other = elsewhere.work / path.relative_to(finished.work)
        assert path.read_bytes() == other.read_bytes()
    # The report shows the backbones, so it needs them.
    assert "Train ce on digits-lt, seed 0" in elsewhere.planned()


def test_backbones_may_be_thrown_away_once_features_are_cached(workspace: Workspace):
    shutil.rmtree(workspace.work / "results/stage1")
    assert workspace.planned("stage2") == set()
    assert "Train ce on digits-lt, seed 0" in workspace.planned()


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"\xff\xfe", b'{"format": "other"}'])
def test_a_damaged_manifest_is_made_again(workspace: Workspace, damage):
    (path,) = (workspace.work / "results/stage2/digits-lt/ffn").rglob("manifest.json")
    path.write_bytes(damage)
    assert workspace.planned() == {FFN, REPORT}
