"""The conformance check over every registered method, and that it can fail."""

from __future__ import annotations

import pytest

from ltpipe.registry import REGISTRY
from ltpipe.stage2 import logit_fusion
from ltpipe.testing import MethodError, check_method


@pytest.mark.parametrize("kind", REGISTRY["method"])
def test_every_method_keeps_its_promises(kind, tmp_path):
    check_method(kind, tmp_path)


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
