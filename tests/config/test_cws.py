"""What an experiment may ask of CWS, refused before anything is trained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ltpipe.config.experiment import read_yaml, resolve
from ltpipe.plan.layout import build_plan
from ltpipe.utils.errors import InputError

CATALOGUE = Path(__file__).resolve().parents[2] / "config"


def experiment(method, figures=(), backbone=None):
    return {
        "experiment": "x",
        "seeds": [0],
        "datasets": {"digits-lt": None},
        "backbones": {
            "split": {"use": "resnet8-cws-alternating", **(backbone or {})},
            "ce": {"use": "resnet8-ce"},
        },
        "methods": {"M": method, "CE": {"use": "backbone-head", "backbones": {"features": "ce"}}},
        "figures": list(figures),
    }


def plan(*arguments, **settings):
    return build_plan(resolve(experiment(*arguments, **settings), CATALOGUE))


def on(name, **settings):
    return {"use": name, "backbones": {"features": "split"}, **settings}


@pytest.mark.parametrize(
    "method",
    [
        on("backbone-head"),
        on("lws"),
        on("mislas"),
        on("m2m"),
        on("tau-norm"),
        on("logit-adjusted"),
        on("class-balanced-sampling"),
        on("dlsa-small", initial="backbone"),
        {"use": "ffn", "backbones": {"ce": "ce", "kps": "split"}},
        {"kind": "logit-fusion", "backbones": {"ce": "split", "kps": "ce"}},
    ],
)
def test_methods_that_take_the_classifier_for_one_over_classes_are_refused(method):
    with pytest.raises(InputError, match=r"backbones\.\w+: 'split' does not fit.*label-mapping"):
        plan(method)


@pytest.mark.parametrize(
    "method",
    [
        on("label-mapping"),
        on("label-mapping-alternating"),
        on("label-mapping-marginal"),
        on("cached-splitting"),
        on("crt"),
        on("ncm"),
        on("ride"),
        on("dlsa-small"),
    ],
)
def test_methods_on_features_alone_are_not(method):
    plan(method)


def test_the_alternating_mapping_needs_a_stage_one_that_trains_it():
    changed = {"use": "resnet8-cws"}
    with pytest.raises(InputError, match="trains no mapping; set mapping: alternating"):
        plan(on("label-mapping-alternating"), backbone=changed)
    other = {"use": "label-mapping-alternating", "backbones": {"features": "ce"}}
    with pytest.raises(InputError, match="'ce' does not fit: its stage one trains no mapping"):
        plan(other)


def test_a_changed_mapping_is_another_method_on_the_same_features():
    cells = [plan(on("label-mapping", learning_rate=rate)).artifacts for rate in (0.1, 0.2)]
    kinds = [{f for f in c if f.split("/")[1] in ("stage1", "features")} for c in cells]
    assert kinds[0] == kinds[1]
    assert set(cells[0]) != set(cells[1])


@pytest.mark.parametrize(
    ("figure", "message"),
    [
        ({"kind": "subclass_occupancy", "backbone": "ce"}, "ce has no subclasses"),
        ({"kind": "subclass_occupancy", "backbone": "spilt"}, "did you mean 'split'"),
        ({"kind": "training_curves", "backbones": ["spilt"]}, "did you mean 'split'"),
        ({"kind": "setting_curve", "setting": "alpha", "lines": {"a": "CE"}}, "no number 'alpha'"),
        ({"kind": "setting_curve", "setting": "scope", "lines": {"a": "M"}}, "no number 'scope'"),
        ({"kind": "setting_curve", "setting": "alpha", "lines": {"a": "N"}}, "nothing is called"),
    ],
)
def test_figures_of_what_is_not_there_are_refused(figure, message):
    with pytest.raises(InputError, match=message):
        plan(on("label-mapping"), figures=[{"dataset": "digits-lt", **figure}])


def test_places_on_a_line_are_the_backbones_settings():
    figure = {"kind": "setting_curve", "dataset": "digits-lt", "setting": "features.views"}
    found = plan(on("label-mapping"), figures=[{**figure, "lines": {"all": "*"}}])
    assert found.report.spec["figures"][0]["lines"] == {"all": {"M": 9.0, "CE": 9.0}}


def test_what_splitting_is_compared_with_is_trained_as_long():
    """Fresh subclasses are learned slowly; networks with and without them have one recipe."""
    networks = resolve(
        read_yaml(CATALOGUE / "experiments/cws_digits.yaml"), CATALOGUE
    ).backbones.values()
    recipes = {
        json.dumps(
            [
                getattr(backbone.settings, name)
                for name in ("epochs", "batch_size", "learning_rate", "weight_decay")
            ]
            + [backbone.settings.schedule.model_dump()]
        )
        for backbone in networks
    }
    assert len(recipes) == 1
    assert json.loads(recipes.pop())[0] == 120
    assert not any(getattr(b.settings, "mixup", None) for b in networks)
    assert any(getattr(b.settings, "subclasses", "") == "counts" for b in networks)
