"""Artifacts that came from another machine are taken up by where they lie."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from tests.workflow.workspace import REPORT, Workspace

pytestmark = pytest.mark.workflow

CE = "Run CE on digits-lt, seed 0"
FFN = "Run FFN on digits-lt, seed 0"


@pytest.fixture
def elsewhere(finished: Workspace, tmp_path) -> Workspace:
    """Another machine: the sources and the experiment file, no results, no records."""
    other = Workspace(tmp_path / "source", tmp_path / "work")
    shutil.copytree(finished.source, other.source)
    other.work.mkdir()
    shutil.copy(finished.work / "experiment.yaml", other.work)
    return other


def test_a_copy_without_times_and_records_is_taken_as_it_is(finished, elsewhere: Workspace):
    command = ["cp", "-r", str(finished.work / "results"), str(elsewhere.work)]
    subprocess.run(command, check=True)
    assert elsewhere.planned() == set()
    assert "Nothing to be done" in elsewhere.snakemake().stderr


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
    planned = elsewhere.planned()
    assert "Train ce on digits-lt, seed 0" in planned and planned >= REPORT


def test_backbones_may_be_thrown_away_once_features_are_cached(workspace: Workspace):
    shutil.rmtree(workspace.work / "results/stage1")
    assert workspace.planned("stage2") == set()
    # They are made again for who asks for them.
    assert "Train ce on digits-lt, seed 0" in workspace.planned("stage1")
