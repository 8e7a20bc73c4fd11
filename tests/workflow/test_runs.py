"""Whole runs: embeddings from elsewhere, bad input, lint."""

from __future__ import annotations

import copy
import csv
import json
import shutil

import numpy as np
import pytest

from ltpipe.plan.stages import STAGES
from tests.workflow.workspace import PRELOADED, Workspace, titles

pytestmark = pytest.mark.workflow


def test_the_experiment_leaves_its_table_and_report(finished: Workspace):
    folder = finished.work / "results/experiments/small/latest"
    assert (folder / "report.html").stat().st_size > 10_000
    assert (folder / "tables/main.csv").is_file()
    assert (folder / "tables/main.md").is_file()
    assert "FFN" in (folder / "summary.txt").read_text()
    with (folder / "index.csv").open() as handle:
        index = list(csv.DictReader(handle))
    assert {row["kind"] for row in index} == {"data", "stage1", "features", "stage2"}
    for row in index:
        assert (finished.work / row["path"]).exists()


def test_every_artifact_says_what_it_was_made_from(finished: Workspace):
    manifests = list((finished.work / "results").rglob("manifest.json"))
    assert len(manifests) == 8
    for path in manifests:
        manifest = json.loads(path.read_text())
        known = {"spec", "modules", "inputs", "outputs", "versions", "wall_s"}
        assert known <= manifest.keys()
        assert manifest["spec"]["code"]
    assert not list((finished.work / "results").rglob("*.tmp"))
    assert not list((finished.work / "results").rglob("resume"))


def test_embeddings_from_elsewhere_have_no_stage_one(workspace: Workspace):
    stream = np.random.default_rng(0)
    centres = stream.normal(size=(4, 6))
    for name in ("ce", "kps"):
        for split, counts in (("train", [40, 20, 10, 5]), ("test", [8, 8, 8, 8])):
            labels = np.repeat(np.arange(4), counts)
            features = centres[labels] + 0.3 * np.random.default_rng(len(split)).normal(
                size=(len(labels), 6)
            )
            np.savez(workspace.work / f"{name}-{split}.npz", features=features, labels=labels)
    stores = {
        name: {split: f"{name}-{split}.npz" for split in ("train", "test")}
        for name in ("ce", "kps")
    }
    experiment = {
        "experiment": "embeddings",
        "seeds": [0, 1],
        "datasets": {"mine": {"source": "features", "stores": stores}},
        "methods": {
            "FFN": {
                "use": "ffn-paper",
                "backbones": {"ce": "ce", "kps": "kps"},
                "views": "plain",
                "epochs": 5,
            }
        },
        "tables": {"main": {"rows": [{"method": "FFN"}]}},
    }
    workspace.write(experiment, "mine.yaml")
    workspace.snakemake(config="mine.yaml")
    summary = (workspace.work / "results/experiments/embeddings/latest/summary.txt").read_text()
    assert "FFN" in summary
    assert not (workspace.work / "results/stage1/mine").exists()
    # A changed file is seen.
    labels = np.repeat(np.arange(4), [40, 20, 10, 5])
    np.savez(workspace.work / "ce-train.npz", features=centres[labels].astype("f4"), labels=labels)
    jobs = workspace.planned(config="mine.yaml")
    assert "Import the embeddings ce of mine" in jobs


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e: e["methods"]["FFN"].update(lerning_rate=1), "did you mean 'learning_rate'"),
        (lambda e: e["methods"]["FFN"].update(w1=[0.5, 2.0]), "w1 must lie between 0 and 1"),
    ],
)
def test_a_bad_experiment_is_one_clear_message(workspace: Workspace, change, message):
    experiment = copy.deepcopy(PRELOADED)
    change(experiment)
    workspace.write(experiment)
    done = workspace.snakemake("-n", check=False)
    assert done.returncode != 0
    said = done.stdout + done.stderr
    assert "experiment file: " in said
    assert message in said
    assert "Traceback" not in said


def test_a_missing_data_set_stops_before_anything_is_written(workspace: Workspace):
    shutil.rmtree(workspace.work / "results")
    experiment = copy.deepcopy(PRELOADED)
    experiment["datasets"] = {
        "mine": {"source": "folder", "path": "nowhere", "input": {"size": [8, 8]}}
    }
    experiment["figures"] = []
    workspace.write(experiment)
    done = workspace.snakemake(check=False)
    assert done.returncode != 0
    logs = "".join(path.read_text() for path in workspace.work.rglob("results/logs/**/*.log"))
    assert "nowhere does not exist" in logs
    assert "Traceback" not in logs
    folders = {stage.folder for stage in STAGES.values()}
    results = workspace.work / "results"
    leftovers = [path for name in folders for path in (results / name).rglob("*") if path.is_file()]
    assert leftovers == []


def test_the_flags_of_ffn_and_its_ablation_run(workspace: Workspace):
    experiment = copy.deepcopy(PRELOADED)
    experiment["methods"] = {
        "FFN": {**PRELOADED["methods"]["FFN"], "w1": 0.5, "best_test": True},
        "bn": {"use": "FFN", "train_bn": True},
        "mismatch": {"use": "FFN", "subset_mismatch": True},
        "online": {"use": "FFN", "online": True},
        "fused": {"use": "logit-fusion", "backbones": {"ce": "ce", "kps": "kps"}, "space": "logit"},
    }
    experiment["tables"]["main"]["rows"] = [{"method": name} for name in experiment["methods"]]
    workspace.write(experiment)
    done = titles(workspace.snakemake())
    # The other draw is one more training of each branch; the ordinary ones are there already.
    assert sum(title.startswith("Train") for title in done) == 2
    summary = (workspace.work / "results/experiments/small/latest/summary.txt").read_text()
    for tag in ("last+train_bn", "last+subset_mismatch", "[best_test]"):
        assert tag in summary


def test_the_workflow_is_free_of_lint(workspace: Workspace):
    done = workspace.snakemake("--lint", check=False)
    assert done.returncode == 0, done.stdout + done.stderr
