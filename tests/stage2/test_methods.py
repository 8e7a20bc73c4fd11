"""The conformance check over every registered method, and that it can fail."""

from __future__ import annotations

import pytest

from ltpipe.config.registry import registered
from ltpipe.stage2.core.inference import Embedded
from ltpipe.stage2.ffn import logit_fusion
from ltpipe.stage2.hrjba.settings import OracleMask
from ltpipe.testing import MethodError, check_method

# The released settings are for features of 2,048 dimensions and 100,000 samples.
SMALL = {
    "dlsa": {
        "filter": {
            "clusters": 12,
            "epochs": 5,
            "batch_size": 64,
            "learning_rate": 0.05,
            "likelihood_weight": 0.05,
        },
        "learning_rate": 0.1,
        "momentum": 0.9,
        "batch_size": 16,
        "epochs": 20,
    },
    # The paper's lists are for ten classes or a hundred.
    "cached-splitting": {"subclasses": "counts"},
    "calibrated": {
        "roles": ["a"],
        "members": {"head": {"kind": "classifier", "backbones": {"features": "a"}, "epochs": 3}},
        "coverage": 0.8,
        "shifts": [2.0, 10.0],
    },
    "stacked": {
        "roles": ["a", "b"],
        "members": {
            "ffn": {"kind": "ffn", "backbones": {"ce": "a", "kps": "b"}, "epochs": 3},
            "probe": {"kind": "classifier", "backbones": {"features": "b"}, "epochs": 3},
            "own": {"kind": "backbone-head", "backbones": {"features": "a"}},
        },
    },
}


@pytest.mark.parametrize("kind", registered("method"))
def test_every_method_keeps_its_promises(kind, tmp_path):
    check_method(kind, tmp_path, **SMALL.get(kind, {}))


@pytest.mark.parametrize(
    "settings",
    [
        {"w1": [0.0, 0.3, 1.0]},
        {"initial": "random", "learning_rate": 0.1, "views": "plain"},
        {"best_test": True, "sampler": "shuffle", "w1": [0.2, 0.8]},
    ],
)
def test_ffn_keeps_them_in_other_settings(settings, tmp_path):
    check_method("ffn", tmp_path, epochs=5, **settings)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("classifier", {"head": "cosine", "loss": {"name": "ldam"}, "learning_rate": [0.05, 0.5]}),
        ("classifier", {"head": "cosine", "rows": "squashed", "views": "plain"}),
        ("classifier", {"loss": {"name": "focal"}, "weights": "effective", "sampler": "shuffle"}),
        ("classifier", {"initial": "backbone", "per_class": 4}),
        ("lws", {"learning_rate": [0.01, 0.1]}),
        ("mislas", {"shape": "linear", "learning_rate": [0.01, 0.1]}),
        ("m2m", {"initial": "random", "learning_rate": [0.01, 0.1]}),
        ("ride", {"experts": 3, "learning_rate": [0.1, 0.3], "reweight_from": 1}),
        ("ride", {"head": "linear", "loss": {"name": "ce"}}),
        ("tau-norm", {"select": "none", "tau": [0.0, 0.5, 1.0]}),
        ("logit-adjusted", {"tau": [0.0, 1.0]}),
        ("ncm", {"distance": "cosine"}),
        ("calibrated", {**SMALL["calibrated"], "folds": 3, "form": "bcts"}),
        ("calibrated", {**SMALL["calibrated"], "folds": 3, "form": "vector"}),
        ("calibrated", {**SMALL["calibrated"], "form": "temperature"}),
        ("label-mapping", {"mapping": "marginal"}),
        ("label-mapping", {"loss": {"name": "ldam"}, "rule": {"name": "drs"}, "hidden": 20}),
        ("label-mapping", {"learning_rate": [0.01, 0.1], "rule": {"name": "rs"}, "views": "plain"}),
        ("cached-splitting", {"mapping": "mlp", "subclasses": [3, 2, 1, 1, 1]}),
        ("cached-splitting", {"learning_rate": [0.01, 0.1], "subclasses": "counts-and-spread"}),
        ("hrjba", {"routing": "oracle", "tail_share": 0.4}),
        ("hrjba", {"routing": "concat"}),
        ("hrjba", {"routing": "temperature", "prior": "class-share"}),
        ("hrjba", {"routing": "energy"}),
        ("hrjba", {"routing": "gate"}),
        ("hrjba", {"routing": "gate", "soft": True, "views": "plain"}),
        ("hrjba", {"routing": "flow", "filter": {**SMALL["dlsa"]["filter"], "epochs": 25}}),
        ("hrjba", {"loss": {"name": "balanced-softmax"}, "learning_rate": [0.01, 0.1]}),
    ],
)
def test_decoupled_classifiers_keep_them_in_other_settings(kind, settings, tmp_path):
    check_method(kind, tmp_path, **settings)


def test_a_method_at_chance_is_found_out(tmp_path, monkeypatch):
    monkeypatch.setattr(logit_fusion, "fuse", lambda ce, kps, w1, space: ce * 0 + 0.2)
    with pytest.raises(MethodError, match="does not beat chance"):
        check_method("logit-fusion", tmp_path)


def test_a_method_that_draws_without_its_seed_is_found_out(tmp_path, monkeypatch):
    import torch

    monkeypatch.setattr(
        logit_fusion, "fuse", lambda ce, kps, w1, space: (ce + torch.rand_like(ce)).softmax(1)
    )
    with pytest.raises(MethodError, match="the same seed gives other bytes"):
        check_method("logit-fusion", tmp_path)


def test_only_oracles_are_told_the_test_labels(tmp_path, monkeypatch):
    monkeypatch.setattr(OracleMask, "protocol", lambda self: "last")
    (tmp_path / "refused").mkdir()
    with pytest.raises(AssertionError, match="labels"):
        check_method("oracle-mask", tmp_path / "refused")
    # Were others told, too, it would be found out.
    of = Embedded.of
    monkeypatch.setattr(Embedded, "of", lambda *where, with_labels: of(*where, with_labels=True))
    with pytest.raises(MethodError, match="predictions depend on the test labels"):
        check_method("oracle-mask", tmp_path)
