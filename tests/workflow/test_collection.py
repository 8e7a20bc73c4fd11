"""A file that includes two experiments, of which one lacks data: from images to the overview."""

from __future__ import annotations

import copy

import pandas as pd
import pytest

from tests.workflow.workspace import PRELOADED, Workspace, titles

pytestmark = pytest.mark.workflow

OTHER = {
    "experiment": "other",
    "datasets": {"digits-lt": None, "cifar100-lt": None},
    "tables": {
        "digits": {"datasets": ["digits-lt"], "rows": [{"method": "CE"}]},
        "cifar": {"datasets": ["cifar100-lt"], "rows": [{"method": "CE"}]},
    },
    "figures": [{"kind": "class_distribution", "dataset": "cifar100-lt"}],
}


@pytest.fixture
def collected(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    empty = workspace.work / "no-data"
    empty.mkdir()
    monkeypatch.setenv("LTPIPE_DATA", str(empty))
    other = {**copy.deepcopy(PRELOADED), **OTHER}
    other["methods"]["fused"] = {
        "use": "logit-fusion",
        "label": "fused",
        "backbones": {"ce": "ce", "kps": "kps"},
        "w1": 0.5,
    }
    workspace.write(other, "other.yaml")
    gone = {**copy.deepcopy(other), "experiment": "gone", "datasets": {"cifar100-lt": None}}
    gone["tables"] = {"cifar": OTHER["tables"]["cifar"]}
    workspace.write(gone, "gone.yaml")
    include = ["experiment", "other.yaml", "gone"]
    whole = {"experiment": "whole", "missing": "skip", "include": include}
    workspace.write(whole, "whole.yaml")
    return workspace


def test_what_is_there_runs_and_what_is_not_is_listed(collected: Workspace):
    done = collected.snakemake(config="whole.yaml")
    # The included experiment that was finished before stands as it is.
    assert titles(done) == {
        "Run fused on digits-lt, seed 0",
        "Write the tables, figures and report of other",
        "Publish the report as results/experiments/other/latest",
        "Write the overview whole",
        "Publish the report as results/experiments/whole/latest",
    }
    assert done.stderr.index("CIFAR-100 is not under") < done.stderr.index("Job stats")
    assert "in the tables other/cifar, gone/cifar" in done.stderr
    assert "nothing of these experiments can run: gone" in done.stderr
    folder = collected.work / "results/experiments"
    page = (folder / "other/latest/report.html").read_text()
    assert "Not there" in page and "put the folder cifar-100-binary" in page
    assert not (folder / "other/latest/tables/cifar.csv").exists()
    overview = (folder / "whole/latest/report.html").read_text()
    for name in ("small", "other"):
        newest = (folder / name / "latest").resolve().name
        assert f'href="../../{name}/{newest}/report.html"' in overview
    assert "Not there" in overview and "gone" in overview
    assert "CIFAR-100 is not under" in (folder / "whole/latest/summary.txt").read_text()
    results = pd.read_csv(folder / "whole/latest/results.csv")
    # CE and a point of FFN are of both experiments and stand once.
    points = [f"FFN (w1 = {w1})" for w1 in ("0", "0.5", "1")]
    assert sorted(results["method"]) == ["CE", *points, "fused (w1 = 0.5)"]
    assert results["accuracy"].is_monotonic_decreasing
    for _, row in results.iterrows():
        assert 0 <= row["few"] <= 1 and row["seeds"] == 1
    assert not collected.planned(config="whole.yaml")


def test_without_skip_the_lack_is_the_jobs_error(collected: Workspace):
    done = collected.snakemake("-n", "-p", config="other.yaml")
    assert "Draw the training subset of cifar100-lt" in titles(done)
    assert "not there" not in done.stderr


def test_bad_includes_stop_the_plan_with_one_error(collected: Workspace):
    for include, message in (
        (["nowhere"], "there is no experiment file 'nowhere'"),
        (["experiment", "experiment"], "two experiments are called 'small'"),
    ):
        collected.write({"experiment": "whole", "include": include}, "whole.yaml")
        done = collected.snakemake("-n", config="whole.yaml", check=False)
        assert done.returncode != 0
        assert message in done.stdout + done.stderr
        assert "Traceback" not in done.stderr
