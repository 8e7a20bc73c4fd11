"""Digests, folders and inputs of planned artifacts."""

from __future__ import annotations

import copy
import hashlib
import json
from pathlib import Path

import pytest

from ltpipe.config.base import canonical_json, digest
from ltpipe.config.experiment import resolve
from ltpipe.plan.entries import code_entries
from ltpipe.plan.layout import build_plan

CATALOGUE = Path(__file__).resolve().parents[2] / "config"

SMALL = {
    "experiment": "small",
    "seeds": [3],
    "datasets": {"digits-lt": None},
    "methods": {"FFN": {"use": "ffn", "backbones": {"ce": "resnet8-ce", "kps": "resnet8-kps"}}},
}


def plan_of(**ffn):
    values = copy.deepcopy(SMALL)
    values["methods"]["FFN"].update(ffn)
    return build_plan(resolve(values, CATALOGUE))


def only(plan, kind):
    (cell,) = plan.of_kind(kind)
    return cell


def test_a_digest_is_that_of_the_canonical_json():
    value = {"b": [1, 2.5], "a": "é"}
    text = '{"a":"é","b":[1,2.5]}'
    assert canonical_json(value) == text
    assert digest(value) == hashlib.sha256(text.encode()).hexdigest()[:10]


def test_paths_carry_identity_and_seed_but_no_experiment():
    plan = plan_of()
    for cell in plan.artifacts.values():
        stage = cell.folder.split("/")[1]
        assert stage in ("data", "stage1", "features", "stage2")
        assert "small" not in cell.spec_text
        bare = {key: value for key, value in cell.spec.items() if key not in ("kind", "seed")}
        assert cell.digest == digest(bare)
        assert cell.folder.endswith("/seed3") == ("seed" in cell.spec)
    assert only(plan, "data").folder.startswith("results/data/digits-lt/")


def test_the_chain_from_images_to_classifier():
    classify = only(plan_of(), "stage2")
    assert set(classify.inputs) == {"features.ce", "features.kps"}
    store = classify.inputs["features.kps"]
    assert set(store.inputs) == {"stage1", "data"}
    assert classify.spec["inputs"]["features.kps"] == store.digest
    assert store.spec["inputs"]["stage1"] == store.inputs["stage1"].digest
    assert json.loads(classify.spec_text)["method"] == {"kind": "ffn", "weight_decay": 1e-4}


@pytest.mark.parametrize(
    "change",
    [{"w1": 0.4}, {"epochs": 3}, {"initial": "random"}, {"best_test": True}, {"views": "plain"}],
)
def test_a_stage_two_setting_moves_stage_two_alone(change):
    before, after = plan_of(), plan_of(**change)
    assert only(before, "stage2").folder != only(after, "stage2").folder
    for kind in ("data", "stage1", "features"):
        assert [c.folder for c in before.of_kind(kind)] == [c.folder for c in after.of_kind(kind)]


def test_train_bn_asks_for_other_features_of_the_ce_branch_alone():
    before, after = only(plan_of(), "stage2"), only(plan_of(train_bn=True), "stage2")
    assert before.inputs["features.kps"] == after.inputs["features.kps"]
    ce = after.inputs["features.ce"]
    assert ce.spec["features"]["train_bn"] is True
    assert ce.inputs["stage1"] == before.inputs["features.ce"].inputs["stage1"]


def test_subset_mismatch_trains_on_another_draw_and_dumps_the_own_one():
    plan = plan_of(subset_mismatch=True)
    store = only(plan, "stage2").inputs["features.ce"]
    assert store.inputs["stage1"].spec["dataset"]["subset_seed"] == 666
    assert "subset_seed" not in store.spec["dataset"]
    assert len(plan.of_kind("data")) == 2


def test_online_needs_images_and_backbones():
    cell = only(plan_of(online=True), "stage2")
    assert set(cell.inputs) == {"features.ce", "features.kps", "stage1.ce", "stage1.kps", "data"}
    assert set(cell.spec["backbones"]) == {"ce", "kps"}


def test_dumping_more_views_trains_nothing_again():
    values = copy.deepcopy(SMALL)
    values["backbones"] = {"resnet8-ce": {"features": {"views": 4}}}
    before, after = plan_of(), build_plan(resolve(values, CATALOGUE))
    assert {c.folder for c in before.of_kind("stage1")} == {
        c.folder for c in after.of_kind("stage1")
    }
    assert {c.folder for c in before.of_kind("features")} != {
        c.folder for c in after.of_kind("features")
    }


def test_the_shot_groups_belong_to_the_evaluation():
    values = copy.deepcopy(SMALL)
    values["datasets"] = {"digits-lt": {"groups": "thresholds"}}
    before, after = plan_of(), build_plan(resolve(values, CATALOGUE))
    changed = set(before.artifacts) ^ set(after.artifacts)
    assert {folder.split("/")[1] for folder in changed} == {"stage2"}


def tau_norm(dataset, **method):
    values = {
        "experiment": "x",
        "seeds": [3],
        "datasets": {"d": dataset},
        "methods": {"tau": {"use": "tau-norm", "backbones": {"features": "resnet8-ce"}, **method}},
    }
    return build_plan(resolve(values, CATALOGUE))


def test_what_is_chosen_is_chosen_with_a_second_backbone_where_there_is_no_validation_set():
    cell = only(tau_norm({"use": "digits-lt"}), "stage2")
    assert set(cell.inputs) == {"features.features", "tuning.features"}
    held_out = cell.inputs["tuning.features"]
    assert cell.spec["inputs"]["tuning.features"] == held_out.digest
    assert held_out.inputs["data"].spec["dataset"]["val_fraction"] == 0.1
    assert held_out.inputs["stage1"].spec["dataset"]["val_fraction"] == 0.1
    plain = cell.inputs["features.features"]
    assert "val_fraction" not in plain.inputs["stage1"].spec["dataset"]
    assert plain.digest != held_out.digest


@pytest.mark.parametrize(
    ("dataset", "method"),
    [
        ({"use": "digits-lt", "val_fraction": 0.2}, {}),
        ({"use": "imagenet-lt"}, {}),
        ({"use": "octmnist"}, {}),
        ({"use": "digits-lt"}, {"select": "none"}),
    ],
)
def test_no_second_backbone_is_trained_without_need(dataset, method):
    plan = tau_norm(dataset, **method)
    cell = only(plan, "stage2")
    assert set(cell.inputs) == {"features.features"}
    assert "tuning" not in cell.spec
    assert len(plan.of_kind("stage1")) == 1


def test_a_loss_of_a_classifier_counts_as_its_code():
    values = copy.deepcopy(SMALL)
    values["methods"] = {
        "plain": {"use": "crt", "backbones": {"features": "resnet8-ce"}},
        "kps": {
            "use": "crt",
            "head": "cosine",
            "loss": {"name": "kps"},
            "backbones": {"features": "resnet8-ce"},
        },
    }
    found = [
        code_entries(cell.spec) for cell in build_plan(resolve(values, CATALOGUE)).of_kind("stage2")
    ]
    assert found == [
        ("ltpipe.stage2.simple.classifier", "ltpipe.losses.softmax"),
        ("ltpipe.stage2.simple.classifier", "ltpipe.losses.margin"),
    ]


@pytest.mark.parametrize(
    ("backbone", "system", "loss"),
    [
        ("resnet8-ce", "supervised", "ltpipe.losses.softmax"),
        ("resnet8-bbn", "bbn", "ltpipe.losses.softmax"),
        ("resnet8-paco", "paco", None),
    ],
)
def test_a_backbones_system_runs_its_training(backbone, system, loss):
    values = copy.deepcopy(SMALL)
    values["methods"] = {"x": {"use": "backbone-head", "backbones": {"features": backbone}}}
    entries = code_entries(only(build_plan(resolve(values, CATALOGUE)), "stage1").spec)
    assert entries[0] == f"ltpipe.stage1.{system}"
    assert [name for name in entries if name.startswith("ltpipe.losses")] == (
        [] if loss is None else [loss]
    )


def towers_plan(**ecvl):
    values = {
        "experiment": "small",
        "seeds": [3],
        "datasets": {"digits-lt": None},
        "methods": {"ecvl": {"backbones": {"features": "small-towers"}, **ecvl}},
    }
    return build_plan(resolve(values, CATALOGUE))


def test_phase_two_shares_its_towers_and_their_dump():
    plain = towers_plan()
    for changes in (
        {"momentum": False},
        {"mu": [0.1, 1.0]},
        {"adapter": {"lambda": 0.5}},
        {"online": True},
    ):
        other = towers_plan(**changes)
        for kind in ("stage1", "features"):
            assert only(other, kind).folder == only(plain, kind).folder
        assert only(other, "stage2").folder != only(plain, "stage2").folder


def test_towers_have_a_dump_of_their_own_and_phase_two_needs_no_towers():
    plan = towers_plan()
    assert code_entries(only(plan, "stage1").spec)[0] == "ltpipe.stage1.vision_language"
    dump = code_entries(only(plan, "features").spec)
    assert dump[0] == "ltpipe.features.vision_language"
    assert "ltpipe.models.vision_language" in dump
    assert code_entries(only(plan, "stage2").spec) == ("ltpipe.stage2.ecvl.job",)
    online = code_entries(only(towers_plan(online=True), "stage2").spec)
    assert {"ltpipe.stage2.ecvl.online", "ltpipe.models.vision_language"} <= set(online)


def test_the_report_is_told_what_towers_start_from():
    (result,) = towers_plan().report.spec["results"]
    assert result["origins"] == [
        "small-resnet: random initial weights, not pretrained, 30 epochs of fine-tuning"
    ]
    (other,) = plan_of().report.spec["results"]
    assert other["origins"] == []


def frozen_plan(seeds):
    values = {
        "experiment": "small",
        "seeds": seeds,
        "datasets": {"digits-lt": None},
        "backbones": {
            "clip": {
                "system": "vision-language",
                "network": "RN50",
                "weights": "somewhere/w.safetensors",
                "epochs": 0,
            }
        },
        "methods": {
            "zero-shot": {"backbones": {"features": "clip"}},
            "stack": {
                "kind": "stacked",
                "backbones": {"features": "clip"},
                "members": {
                    "zero": {"kind": "zero-shot", "backbones": {"features": "features"}},
                    "means": {"kind": "ncm", "backbones": {"features": "features"}},
                },
            },
        },
    }
    return build_plan(resolve(values, CATALOGUE))


def test_a_network_that_is_not_trained_has_no_seed_and_one_copy():
    plan = frozen_plan([0, 1, 2])
    for kind in ("data", "stage1", "features"):
        artifact = only(plan, kind)
        assert "seed" not in artifact.spec and artifact.folder.endswith(artifact.digest)
    assert len(plan.of_kind("stage2")) == 6
    for result in plan.of_kind("stage2"):
        assert set(result.inputs) == {"features.features"}
    assert "weights" not in only(plan, "stage1").spec["backbone"]
    assert only(plan, "stage1").spec["locations"]["backbone"]["weights"].endswith("w.safetensors")


@pytest.mark.parametrize(
    ("draws", "backbone", "pooled"),
    [
        (3, {}, True),
        # Two draws have fewer samples than there are.
        (2, {}, False),
        (3, {"features": {"views": 1}}, False),
        (3, {"trained": "head", "loss": {"name": "ce"}}, False),
    ],
)
def test_draws_share_the_features_of_a_frozen_network(draws, backbone, pooled):
    values = {
        "experiment": "draws",
        "seeds": [0, 1],
        "datasets": {"mine": {"use": "digits-lt", "subset_seeds": list(range(draws))}},
        "backbones": {"b": {"use": "efficientnet-lite0", **backbone}},
        "methods": {"NCM": {"use": "ncm", "backbones": {"features": "b"}}},
    }
    plan = build_plan(resolve(values, CATALOGUE))
    stores = {cell.inputs["features.features"] for cell in plan.of_kind("stage2")}
    pools = {store.inputs["pool"] for store in stores if "pool" in store.inputs}
    assert len(pools) == pooled
    for pool in pools:
        assert len(stores) == draws and all(set(s.inputs) > {"pool", "data"} for s in stores)
        assert "imbalance" not in pool.spec["dataset"] and "pool" not in pool.inputs
        assert (pool.threads, next(iter(stores)).threads) == (8, 1)
        assert not pool.spec["dataset"].get("subset_seed") and "seed" not in pool.spec


def test_stores_of_one_data_set_are_different_features():
    stores = {name: {"train": f"{name}.npz", "test": "test.npz"} for name in ("a", "b")}
    values = {
        "experiment": "two",
        "seeds": [0],
        "datasets": {"mine": {"source": "features", "stores": stores}},
        "methods": {
            f"on-{name}": {"use": "ncm", "backbones": {"features": name}} for name in stores
        },
    }
    plan = build_plan(resolve(values, CATALOGUE))
    assert len({one.digest for one in plan.of_kind("import")}) == 2
    assert len({one.folder for one in plan.of_kind("stage2")}) == 2
