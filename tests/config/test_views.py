"""What a method needs of a backbone's cache is known before anything is trained."""

from __future__ import annotations

from typing import Any

import pytest

from ltpipe.config.experiment import find_catalogue, resolve
from ltpipe.utils.errors import InputError
from tests.workflow.workspace import REPOSITORY

CATALOGUE = find_catalogue(REPOSITORY / "config/config.yaml")
BRANCHES = {"head": "head", "tail": "tail"}


def check(method: dict[str, Any], views: int = 0, backbone: str = "resnet8-ce", **features: Any):
    """Resolve an experiment of one method whose backbones cache that many views."""
    kept = {"views": views, **features}
    roles = method.get("backbones", {"features": "net"})
    names = {name: {"use": backbone, "features": kept} for name in roles.values()}
    if "head" in roles:
        names = {role: {"use": f"resnet8-{role}", "features": kept} for role in roles}
    return resolve(
        {
            "experiment": "views",
            "seeds": [0],
            "datasets": {"digits-lt": None},
            "backbones": names,
            "methods": {"m": {"backbones": roles, **method}},
        },
        CATALOGUE,
    )


NEEDY = [
    {"use": "crt"},
    {"use": "lws"},
    {"use": "mislas"},
    {"use": "m2m"},
    {"use": "ride"},
    {"use": "label-mapping"},
    {"use": "cached-splitting"},
    {"use": "ffn", "backbones": {"ce": "a", "kps": "b"}},
    {"use": "hrjba", "backbones": BRANCHES},
    {"use": "hrjba", "backbones": BRANCHES, "routing": "gate"},
    {
        "kind": "stacked",
        "backbones": {"features": "net"},
        "members": {
            name: {"kind": kind, "backbones": {"features": "features"}}
            for name, kind in (("a", "ncm"), ("b", "classifier"))
        },
    },
]


@pytest.mark.parametrize("method", NEEDY)
def test_views_that_are_not_cached_are_missed_at_planning(method):
    with pytest.raises(InputError, match=r"does not fit: it caches no augmented views; set featu"):
        check(method)
    check(method, views=1)


@pytest.mark.parametrize(
    "method",
    [
        {"use": "crt", "views": "plain"},
        {"use": "ffn", "backbones": {"ce": "a", "kps": "b"}, "online": True},
        {"use": "label-mapping-marginal"},
        {"use": "ncm"},
        {"use": "tau-norm-sweep"},
        {"use": "backbone-head"},
        {"use": "hrjba", "backbones": BRANCHES, "routing": "concat"},
        {"use": "dlsa-small"},
    ],
)
def test_who_trains_on_no_views_needs_none(method):
    check(method)


def test_ecvl_needs_texts_and_a_ladder():
    with pytest.raises(InputError, match="'net' does not fit: it has no class texts"):
        check({"use": "zero-shot"})
    with pytest.raises(InputError, match="'net' does not fit: it has no class texts"):
        check({"use": "ballad"}, views=1)
    with pytest.raises(InputError, match=r"no ladder of RandAugment views; set features\.ladder"):
        check({"use": "ecvl"}, views=1, backbone="small-towers", ladder=None)
    check({"use": "ballad"}, views=1, backbone="small-towers", ladder=None)


@pytest.mark.parametrize("method", ["ecvl", "ecvl-momentum"])
def test_ecvl_needs_two_different_views_of_an_image(method):
    with pytest.raises(InputError, match=r"features\.views is 1, and the contrast is between two"):
        check({"use": method}, views=1, backbone="small-towers")
    check({"use": method}, views=2, backbone="small-towers")
    # The images themselves have as many views as are wanted.
    check({"use": method, "online": True}, views=0, backbone="small-towers")


def test_a_ladder_has_two_draws_where_it_is_contrasted():
    one = {"strengths": 5, "draws": 1}
    with pytest.raises(InputError, match=r"features\.ladder\.draws is 1, and the contrast"):
        check({"use": "ecvl"}, views=2, backbone="small-towers", ladder=one)
    with pytest.raises(InputError, match=r"features\.ladder\.draws is 1, and the contrast"):
        # What is not trained on is measured all the same.
        check({"use": "ecvl", "momentum": False}, views=2, backbone="small-towers", ladder=one)
    check({"use": "ecvl-momentum"}, views=2, backbone="small-towers", ladder=one)
    check({"use": "ballad"}, views=1, backbone="small-towers", ladder=one)


@pytest.mark.parametrize("entry", ["clip-rn50", "clip-rn50-adamw", "small-towers"])
def test_the_catalogues_towers_have_several_views_of_each_strength(entry):
    resolved = resolve(
        {
            "experiment": "views",
            "seeds": [0],
            "datasets": {"digits-lt": None},
            "backbones": {"net": {"use": entry}},
            "methods": {"m": {"use": "ecvl", "backbones": {"features": "net"}}},
        },
        CATALOGUE,
    )
    kept: Any = resolved.backbones["net"].settings.features
    assert kept.views >= 4
    assert kept.ladder.draws >= 4
