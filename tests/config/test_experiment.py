"""Experiment files: what is accepted, what is refused, and with which words."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest

from ltpipe.config.experiment import load_experiment, resolve
from ltpipe.config.files import read_yaml
from ltpipe.plan.layout import build_plan
from ltpipe.plan.workload import load_workload
from ltpipe.utils.errors import InputError

CATALOGUE = Path(__file__).resolve().parents[2] / "config"

SMALL = {
    "experiment": "small",
    "seeds": [0, 1],
    "datasets": {"digits-lt": None},
    "methods": {
        "CE": {"use": "backbone-head", "backbones": {"features": "resnet8-ce"}},
        "FFN": {"use": "ffn", "backbones": {"ce": "resnet8-ce", "kps": "resnet8-kps"}},
    },
    "tables": {"main": {"rows": [{"method": "CE"}, {"method": "FFN", "at": {"w1": 0.5}}]}},
}


def small(*path, value):
    experiment = copy.deepcopy(SMALL)
    place = experiment
    for key in path[:-1]:
        place = place.setdefault(key, {})
    place[path[-1]] = value
    return experiment


def test_names_are_resolved_against_the_catalogue():
    experiment = resolve(SMALL, CATALOGUE)
    assert list(experiment.backbones) == ["resnet8-ce", "resnet8-kps"]
    assert experiment.backbones["resnet8-kps"].settings.loss.name == "kps"
    assert experiment.methods["FFN"].folder == "ffn"
    assert experiment.jobs == [("digits-lt", m, s) for m in ("CE", "FFN") for s in (0, 1)]


def test_overrides_are_merged_key_by_key():
    values = small("backbones", "resnet8-ce", value={"epochs": 3, "features": {"views": 1}})
    backbone = resolve(values, CATALOGUE).backbones["resnet8-ce"].settings
    assert (backbone.epochs, backbone.batch_size) == (3, 32)
    assert (backbone.features.views, backbone.features.precision) == (1, "fp32")


def test_another_loss_replaces_the_settings_of_the_first():
    values = small("backbones", "resnet8-kps", value={"loss": {"name": "ldam"}})
    loss = resolve(values, CATALOGUE).backbones["resnet8-kps"].settings.loss
    assert (loss.name, loss.scale) == ("ldam", 30.0)


def test_an_entry_may_start_from_another_of_the_experiment():
    values = small("backbones", "short", value={"use": "resnet8-ce", "epochs": 3})
    values["backbones"]["shorter"] = {"use": "short", "epochs": 1}
    values["methods"]["CE"]["backbones"] = {"features": "shorter"}
    named = resolve(values, CATALOGUE).backbones["shorter"]
    assert (named.folder, named.settings.epochs) == ("resnet8-ce", 1)


def test_a_sweep_writes_entries_out():
    values = small(
        "datasets",
        value={
            "digits-{imbalance}": {
                "use": "digits-lt",
                "label": "digits at {imbalance}",
                "sweep": {"imbalance": [20, 50.5]},
            }
        },
    )
    datasets = resolve(values, CATALOGUE).datasets
    assert list(datasets) == ["digits-20", "digits-50.5"]
    assert datasets["digits-20"].settings.imbalance == 20.0
    assert datasets["digits-50.5"].settings.label == "digits at 50.5"


def test_a_sweep_reaches_nested_settings():
    values = small(
        "backbones",
        "v{features_views}",
        value={
            "use": "resnet8-ce",
            "sweep": {"features.views": [1, 3]},
        },
    )
    backbones = resolve(values, CATALOGUE).backbones
    assert [backbones[f"v{n}"].settings.features.views for n in (1, 3)] == [1, 3]
    assert backbones["v1"].settings.features.precision == "fp32"


def test_for_fills_braces_and_nothing_else():
    values = small("methods", value={})
    values["backbones"] = {
        "{loss_name}+{rule_name}": {
            "use": "resnet8-ce",
            "sweep": {"loss.name": ["ce", "focal"], "rule.name": ["none", "drw"]},
        }
    }
    values["methods"] = {
        "{loss}, {rule}".replace(", ", "+"): {
            "use": "backbone-head",
            "label": "{loss} under {rule}",
            "backbones": {"features": "{loss}+{rule}"},
            "for": {"loss": ["ce", "focal"], "rule": ["none", "drw"]},
        },
        "rate{learning_rate}-{sampler}": {
            "use": "crt",
            "backbones": {"features": "ce+none"},
            "sweep": {"learning_rate": [0.1, 0.2]},
            "for": {"sampler": ["a", "b"]},
        },
    }
    values["tables"] = {"main": {"rows": [{"method": "*+*", "paper_method": "{method}"}]}}
    values["figures"] = []
    experiment = resolve(values, CATALOGUE)
    names = ["ce+none", "ce+drw", "focal+none", "focal+drw"]
    assert list(experiment.methods)[:4] == names
    assert experiment.methods["focal+drw"].settings.label == "focal under drw"
    assert experiment.backbones["focal+drw"].settings.loss.name == "focal"
    assert experiment.backbones["focal+drw"].settings.rule.name == "drw"
    rates = [method.settings.learning_rate for method in list(experiment.methods.values())[4:]]
    assert rates == [0.1, 0.1, 0.2, 0.2]
    rows = build_plan(experiment).report.spec["tables"]["main"]["rows"]
    assert [row["method"] for row in rows] == names


def test_numbers_in_scientific_notation_are_numbers():
    values = small("methods", "FFN", "weight_decay", value="2e-4")
    assert resolve(values, CATALOGUE).methods["FFN"].settings.weight_decay == 2e-4


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("sedes",), [0], "unknown key 'sedes' (did you mean 'seeds'?)"),
        (("seeds",), "0", "seeds: "),
        (("seeds",), [0, 0], "seeds: "),
        (("seeds",), [True], "seeds[0]: "),
        (("experiment",), "a/b", "experiment: "),
        (("experiment",), "../up", "experiment: "),
        (("device",), "gpu", "device: "),
        (("datasets",), {}, "datasets: "),
        (
            ("datasets", "digits-l"),
            None,
            "datasets.digits-l: there is no definition 'digits-l' (did you mean 'digits-lt'",
        ),
        (("datasets", "x"), {"use": "cifar10"}, "datasets.x.use: there is no 'cifar10'"),
        (("datasets", "x"), {"use": "cifar10"}, "did you mean 'cifar10-lt'"),
        (("datasets", "digits-lt"), {"imbalanc": 3}, "did you mean 'imbalance'"),
        (("datasets", "digits-lt"), {"imbalance": 0.5}, "datasets.digits-lt.imbalance: "),
        (("datasets", "digits-lt"), {"imbalance": "ten"}, "datasets.digits-lt.imbalance: "),
        (
            ("datasets", "digits-lt"),
            {"source": "digit"},
            "unknown source 'digit' (did you mean 'digits'?)",
        ),
        (("datasets", "digits-lt"), {"input": {"mean": [0.1, 0.2]}}, "one number for each"),
        (("backbones", "resnet8-ce"), {"network": "resnet9"}, "did you mean 'resnet8'"),
        (("backbones", "resnet8-ce"), {"loss": {"name": "kps"}}, "set head: cosine"),
        (
            ("backbones", "resnet8-ce"),
            {"loss": {"name": "kp"}},
            "backbones.resnet8-ce.loss: unknown name 'kp' (did you mean 'kps'?)",
        ),
        (("backbones", "resnet8-ce"), {"weights": "w.pt"}, "starts from fresh weights only"),
        (("backbones", "resnet8-ce"), {"epochs": True}, "backbones.resnet8-ce.epochs: "),
        (("backbones", "resnet8-ce"), {"schedule": {"milestones": [1]}}, "schedule"),
        (("methods", "FFN", "backbones"), {"ce": "resnet8-ce"}, "kps: this key is required"),
        (("methods", "FFN", "backbones", "ce"), "resnet8", "did you mean 'resnet8-ce'"),
        (("methods", "FFN", "w1"), [], "w1 needs at least one value"),
        (("methods", "FFN", "w1"), [0.1, 0.1], "w1 names a value twice"),
        (("methods", "FFN", "w1"), 1.5, "w1 must lie between 0 and 1"),
        (("methods", "FFN", "momentum"), float("nan"), "methods.FFN.momentum: "),
        (
            ("methods", "FFN", "kind"),
            "fnf",
            "methods.FFN: unknown kind 'fnf' (did you mean 'ffn'?)",
        ),
        (("methods", "c{x}"), {"use": "crt", "for": {"y": [1]}}, "must name one of {y}"),
        (("methods", "c"), {"use": "crt", "for": []}, "methods.c.for: must map names to lists"),
        (("methods", "c"), {"use": "crt", "sweep": {"epochs": 3}}, "methods.c.sweep: must map"),
        (
            ("methods", "c"),
            {"use": "cosine-ldam", "head": "linear", "backbones": {"features": "resnet8-ce"}},
            "takes cosines: set head: cosine",
        ),
        (
            ("methods", "c"),
            {"use": "cosine-ldam", "scale": 3.0, "backbones": {"features": "resnet8-ce"}},
            "scale: loss 'ldam' has its own",
        ),
        (
            ("methods", "c"),
            {"use": "crt", "rows": "unit", "backbones": {"features": "resnet8-ce"}},
            "rows and scale belong to head: cosine",
        ),
        (
            ("methods", "c"),
            {"use": "crt", "learning_rate": [0.1, 0.0], "backbones": {"features": "resnet8-ce"}},
            "learning_rate must be greater than 0",
        ),
        (
            ("methods", "c"),
            {"use": "tau-norm", "tau": [-1.0], "backbones": {"features": "resnet8-ce"}},
            "tau must be at least 0",
        ),
        (("backbones", "b"), {"use": "resnet8-bbn", "network": "resnet8"}, "has one branch"),
        (("backbones", "b"), {"use": "resnet8-paco", "head": "cosine"}, "head: PaCo's centres"),
        (("backbones", "b"), {"use": "resnet8-ce", "system": "bnb"}, "unknown system 'bnb'"),
        (("backbones", "b"), {"use": "resnet8-ce", "trained": "last-stage"}, "trained as a whole"),
        (("methods", "N"), {"use": "N"}, "methods.N.use: 'N' leads back to itself"),
        (("runs",), [{"methods": ["FF"]}], "runs[0].methods: nothing is called 'FF'"),
        (("tables", "main", "rows"), [{"method": "FNN"}], "did you mean 'FFN'"),
        (("tables", "main", "rows"), [{"method": "FFN", "at": {"w1": 0.3}}], "has no point"),
        (("tables", "main", "metrics"), ["acc"], "tables.main.metrics[0]: unknown value 'acc'"),
        (
            ("figures",),
            [{"kind": "tsne", "dataset": "digits-lt", "backbones": ["x"]}],
            "figures[0]",
        ),
        (("figures",), [{"kind": "pie", "dataset": "digits-lt"}], "figures"),
    ],
)
def test_what_cannot_be_is_refused_by_its_path(path, value, message):
    with pytest.raises(InputError) as caught:
        resolve(small(*path, value=value), CATALOGUE)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_definitions_that_lead_in_a_circle_are_refused():
    values = small("backbones", value={"a": {"use": "b"}, "b": {"use": "a"}})
    with pytest.raises(InputError, match="leads back to itself"):
        resolve(values, CATALOGUE)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\na: 2\n", "line 2: key 'a' stands twice"),
        ("a: [1,\n", "not YAML"),
        ("- 1\n", "must be a mapping"),
        ("a: !!python/object/apply:os.system ['true']\n", "not YAML"),
        ("", "must be a mapping"),
    ],
)
def test_files_that_are_no_plain_mapping_are_refused(tmp_path, text, message):
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        read_yaml(path)
    assert str(path) in str(caught.value)


def test_merge_keys_of_yaml_work(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\n")
    assert read_yaml(path) == {"a": {"x": 1, "y": 2}, "b": {"x": 1, "y": 3}}


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        load_experiment(tmp_path / "none.yaml", CATALOGUE)


@pytest.mark.parametrize("path", sorted(CATALOGUE.glob("experiments/*.yaml")), ids=lambda p: p.stem)
def test_shipped_experiments_are_valid(path):
    load = load_workload(path)
    assert all(plan.experiment.jobs for plan in load.plans)


def test_every_definition_of_the_catalogue_is_valid():
    from ltpipe.config.experiment import read_catalogue

    catalogue = read_catalogue(CATALOGUE)
    values = {
        "experiment": "all",
        "datasets": dict.fromkeys(catalogue["datasets"]),
        "backbones": dict.fromkeys(catalogue["backbones"]),
        "methods": SMALL["methods"],
    }
    experiment = resolve(values, CATALOGUE)
    assert set(experiment.backbones) == set(catalogue["backbones"])
    for section in catalogue.values():
        for name, entry in section.items():
            assert entry.get("description"), f"{name} has no description"
