"""Files that include others, and what is left out where data sets or weights are not there."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from ltpipe.plan.missing import describe_missing
from ltpipe.plan.workload import load_workload
from ltpipe.utils.errors import InputError

CATALOGUE = Path(__file__).resolve().parents[2] / "config"


def experiment(name, datasets=("digits-lt",), **more):
    return {
        "experiment": name,
        "seeds": [0],
        "datasets": dict.fromkeys(datasets),
        "methods": {"CE": {"use": "backbone-head", "backbones": {"features": "resnet8-ce"}}},
        "tables": {"main": {"rows": [{"method": "CE"}]}},
        **more,
    }


@pytest.fixture
def write(tmp_path):
    def write(name, values):
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(values, sort_keys=False))
        return path

    return write


def collection(*include, **more):
    return {"experiment": "whole", "include": list(include), **more}


def lacks(*sources):
    """Judge data sets of these sources to be absent, and nothing else."""

    def judge(head):
        return lambda s: "put it here" if getattr(s, "source", None) in sources else None

    return judge


def test_included_experiments_keep_their_reports_and_share_artifacts(write):
    write("a", experiment("a"))
    write("b", experiment("b", seeds=[0, 1]))
    load = load_workload(write("whole", collection("a", "b.yaml")), CATALOGUE)
    assert list(load.reports) == ["a", "b"]
    alone = [load_workload(Path(write(n, experiment(n))), CATALOGUE).artifacts for n in ("a", "b")]
    assert alone[0].keys() == alone[1].keys() <= load.artifacts.keys()
    # The data once; backbone, features and result of two seeds.
    assert len(load.artifacts) == 1 + 2 * 3
    assert load.overview.spec["reports"] == [plan.report.folder for plan in load.plans]
    assert set(load.overview.inputs) == {plan.report.folder for plan in load.plans}


def test_seeds_of_the_including_file_replace_the_others(write):
    write("a", experiment("a"))
    load = load_workload(write("whole", collection("a", seeds=[3, 4])), CATALOGUE)
    assert {cell.spec["seed"] for cell in load.of_kind("stage2")} == {3, 4}


def test_included_files_may_include(write):
    write("a", experiment("a"))
    write("inner", {**collection("a"), "experiment": "inner"})
    load = load_workload(write("whole", collection("inner", "dlsa_digits")), CATALOGUE)
    assert list(load.reports) == ["a", "dlsa_digits"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (collection("aa"), r"include\[0\]: there is no experiment file 'aa'.*looked in"),
        (collection("whole"), r"include\[0\]: .*whole.yaml includes itself"),
        (collection("loop"), r"include\[0\]: .*loop.yaml includes itself"),
        (collection("a", "a"), "two experiments are called 'a'"),
        ({**collection("a"), "experiment": "a"}, "two experiments are called 'a'"),
        (collection("cuda"), "cuda.yaml: device is another than that of whole"),
        (collection("bad"), "bad.yaml: methods.CE: there is no definition 'CE'"),
        (collection(), "include: "),
        (collection("a", datasets={}), "unknown key 'datasets'"),
        (collection("a", missing="ignore"), "missing: "),
    ],
)
def test_what_cannot_be_is_refused_with_one_error(write, values, message):
    write("a", experiment("a"))
    write("loop", {**collection("loop"), "experiment": "loop"})
    write("cuda", experiment("cuda", device="cuda"))
    write("bad", experiment("bad", methods={"CE": {}}))
    with pytest.raises(InputError, match=message) as caught:
        load_workload(write("whole", values), CATALOGUE)
    assert "\n" not in str(caught.value)


def test_absent_data_is_left_out_where_the_file_says_skip(write):
    figures = [
        {"kind": "class_distribution", "dataset": "digits-lt"},
        {"kind": "class_distribution", "dataset": "cifar10-lt"},
        {"kind": "per_class_accuracy", "dataset": "cifar10-lt", "methods": ["CE"]},
        {"kind": "training_curves", "dataset": "digits-lt"},
    ]
    tables = {
        "both": {"rows": [{"method": "CE"}]},
        "cifar": {"datasets": ["cifar10-lt"], "rows": [{"method": "CE"}]},
    }
    values = experiment("a", ["digits-lt", "cifar10-lt"], figures=figures, tables=tables)
    whole = load_workload(write("a", values), CATALOGUE, lacks("cifar10"))
    assert not whole.missing
    assert len(whole.plans[0].experiment.jobs) == 2
    part = load_workload(write("a", {**values, "missing": "skip"}), CATALOGUE, lacks("cifar10"))
    assert part.plans[0].experiment.jobs == [("digits-lt", "CE", 0)]
    assert not [folder for folder in part.artifacts if "cifar10" in folder]
    spec = part.plans[0].report.spec
    assert list(spec["tables"]) == ["both"]
    assert spec["tables"]["both"]["datasets"] == ["digits-lt"]
    assert [figure["kind"] for figure in spec["figures"]] == [
        "class_distribution",
        "training_curves",
    ]
    assert spec["missing"] == [
        {"why": "put it here", "names": ["CIFAR-10-LT"], "tables": ["a/both", "a/cifar"]}
    ]


def test_absent_weights_take_only_the_methods_that_need_them(write):
    values = experiment("a", missing="skip")
    values["backbones"] = {"other": {"use": "resnet8-kps"}}
    values["methods"]["KPS"] = {"use": "backbone-head", "backbones": {"features": "other"}}
    values["figures"] = [
        {"kind": "per_class_accuracy", "dataset": "digits-lt", "methods": ["CE", "KPS"]},
        {"kind": "tsne", "dataset": "digits-lt", "backbones": ["resnet8-ce"]},
        {"kind": "tsne", "dataset": "digits-lt", "backbones": ["other"]},
        {"kind": "training_curves", "dataset": "digits-lt", "backbones": ["*"]},
    ]

    def judge(head):
        return lambda s: "no weights" if getattr(s, "head", "") == "cosine" else None

    load = load_workload(write("a", values), CATALOGUE, judge)
    (plan,) = load.plans
    assert plan.experiment.jobs == [("digits-lt", "CE", 0)]
    kinds = [figure.kind for figure in plan.experiment.file.figures]
    assert kinds == ["tsne", "training_curves"]
    assert load.missing[0].names == ("other",)


def test_an_experiment_of_which_nothing_is_left_is_named(write):
    write("a", experiment("a"))
    write("b", experiment("b", ["cifar10-lt", "cifar100-lt"]))
    values = collection("a", "b", missing="skip")
    load = load_workload(write("whole", values), CATALOGUE, lacks("cifar10", "cifar100"))
    assert list(load.reports) == ["a"]
    assert load.left_out == ("b",)
    assert load.overview.spec["left_out"] == ["b"]
    text = describe_missing(load.missing, load.left_out)
    assert "CIFAR-10-LT, CIFAR-100-LT: put it here" in text
    assert "in the tables b/main" in text
    assert "nothing of these experiments can run: b" in text


def test_nothing_left_at_all_is_an_error_that_says_what_to_put_where(write):
    path = write("b", experiment("b", ["cifar10-lt"], missing="skip"))
    with pytest.raises(InputError, match="nothing of it can run; put it here"):
        load_workload(path, CATALOGUE, lacks("cifar10"))


def test_the_full_reproduction_has_every_published_table_that_has_methods_to_run():
    load = load_workload(CATALOGUE / "experiments/full.yaml")
    found = {
        (table.expected.paper, table.expected.table)
        for plan in load.plans
        for table in plan.experiment.file.tables.values()
        if table.expected
    }
    wanted = {
        "ffn": ["T3", "T4", "T5"],
        "cws": ["T1", "T2", "T3", "T4"],
        "dlsa": ["T1", "T2", "T3", "T4"],
        "ecvl": ["T2", "T3", "T4", "T5a", "T5b", "T7"],
        "hrjba": ["T5", "T7", "T8"],
    }
    assert {(paper, table) for paper, tables in wanted.items() for table in tables} <= found
