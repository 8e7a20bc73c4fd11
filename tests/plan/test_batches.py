"""Which results one job makes together."""

from __future__ import annotations

import copy

from ltpipe.plan.batches import batches
from tests.plans import EXPERIMENT, plan_of, write_embeddings, write_experiment


def planned(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_embeddings(tmp_path)
    values = {**copy.deepcopy(EXPERIMENT), "seeds": list(range(5))}
    values["datasets"]["mine"]["stores"]["other"] = {"train": "test.npz", "test": "test.npz"}
    values["methods"]["Other"] = {"kind": "ncm", "backbones": {"features": "other"}}
    return plan_of(write_experiment(tmp_path, values))


def test_what_is_not_there_is_joined_by_its_inputs(tmp_path, monkeypatch):
    plan = planned(tmp_path, monkeypatch)
    results = plan.of_kind("stage2")
    parts = batches(plan.artifacts.values(), 4, lambda artifact: False)
    assert sorted(map(len, parts)) == [2, 4, 4, 4]
    for part in parts:
        assert len({one.inputs["features.features"].folder for one in part}) == 1
    named = [one.folder for part in parts for one in part]
    # The fifth result on the second store is alone, which is no batch.
    assert len(set(named)) == len(named) == len(results) - 1

    there = set(named[:3])
    rest = batches(plan.artifacts.values(), 100, lambda artifact: artifact.folder in there)
    assert {one.folder for part in rest for one in part} == {
        one.folder for one in results if one.folder not in there
    }


def test_lines_stay_short_enough_for_the_system(tmp_path, monkeypatch):
    plan = planned(tmp_path, monkeypatch)
    monkeypatch.setattr("ltpipe.plan.batches._MAX_TEXT", 1000)
    for part in batches(plan.artifacts.values(), 100, lambda artifact: False):
        assert sum(len(one.spec_text) for one in part) <= 1000


def test_a_size_of_one_leaves_every_result_its_job(tmp_path, monkeypatch):
    plan = planned(tmp_path, monkeypatch)
    assert batches(plan.artifacts.values(), 1, lambda artifact: False) == []
