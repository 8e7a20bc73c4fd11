"""DLSA's filters are artifacts of their own: trained once, shared, reused."""

from __future__ import annotations

import copy
import re

import h5py
import numpy as np
import pandas as pd
import pytest

from tests.workflow.workspace import PRELOADED, REPORT, Workspace

pytestmark = pytest.mark.workflow

FILTER = {"clusters": 8, "epochs": 2, "batch_size": 64, "learning_rate": 0.05}


def experiment(**settings):
    values = copy.deepcopy(PRELOADED)
    dlsa = {"use": "dlsa-small", "backbones": {"features": "ce"}, "filter": FILTER, "epochs": 2}
    values["methods"] |= {
        "DLSA": {**dlsa, "blocks": 2, **settings},
        "DLSA-ride": {**dlsa, "blocks": 2, "classifier": "ride"},
        "plain": {**dlsa, "blocks": 0},
    }
    return values


def test_filters_are_trained_once_and_outlive_their_classifiers(workspace: Workspace):
    workspace.write(experiment())
    planned = workspace.planned()
    filters = {title for title in planned if title.startswith("Train filter")}
    assert len(filters) == 2
    assert not any(title.startswith(("Train ce", "Cache")) for title in planned)
    workspace.snakemake()
    folders = list((workspace.work / "results/filters").rglob("filter.safetensors"))
    assert len(folders) == 2
    blocks = (workspace.work / "results/stage2").rglob("blocks.csv")
    tables = [pd.read_csv(path) for path in blocks]
    assert sorted(len(table) for table in tables) == [0, 2, 2]

    # Another classifier on the same filters, the same one with another rate: no filter again.
    workspace.write(experiment(learning_rate=0.2))
    assert {re.sub(r" on .*", "", title) for title in workspace.planned()} == {"Run DLSA"} | REPORT
    workspace.edit(
        workspace.module("ltpipe.stage2.dlsa.embedded"), "_EXPERTS = 2", "_EXPERTS = 2 * 1"
    )
    assert not any(title.startswith("Train") for title in workspace.planned())

    # Another filter: its followers too, and no backbone.
    values = experiment()
    values["methods"]["DLSA"]["filter"] = {**FILTER, "epochs": 3}
    workspace.write(values)
    again = {title for title in workspace.planned() if title.startswith("Train")}
    assert len(again) == 2
    assert all(title.startswith("Train filter") for title in again)


def test_the_authors_feature_files_go_in_as_they_are(workspace: Workspace):
    stream = np.random.default_rng(0)
    centres = 3 * stream.normal(size=(6, 16))
    for split, sizes in (("train", [80, 40, 20, 10, 5, 3]), ("test", [10] * 6)):
        labels = np.repeat(np.arange(6), sizes)
        with h5py.File(workspace.work / f"features_{split}.h5", "w") as file:
            features = centres[labels] + stream.normal(size=(len(labels), 16))
            file["features"] = features.astype(np.float32)
            # Their code writes labels as floats.
            file["labels"] = labels.astype(np.float32)
    values = experiment()
    dlsa = {**values["methods"]["DLSA"], "backbones": {"features": "paco"}}
    values |= {
        "datasets": {
            "theirs": {
                "source": "features",
                "stores": {"paco": {"train": "features_train.h5", "test": "features_test.h5"}},
            }
        },
        "backbones": {},
        "methods": {"DLSA": dlsa, "plain": {**dlsa, "blocks": 0}},
        "tables": {"main": {"rows": [{"method": "DLSA"}, {"method": "plain"}]}},
        "figures": [{"kind": "separation", "dataset": "theirs", "methods": ["DLSA"]}],
    }
    workspace.write(values, "theirs.yaml")
    workspace.snakemake(config="theirs.yaml")
    table = workspace.work / "results/experiments/small/latest/tables/main.csv"
    accuracy = pd.read_csv(table).query("metric == 'accuracy'")
    assert len(accuracy) == 2
    assert (accuracy["mean"] > 0.5).all()
