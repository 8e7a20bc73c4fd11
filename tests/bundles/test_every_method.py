"""A bundle of every registered method predicts what the pipeline predicted on the test images."""

from __future__ import annotations

import numpy as np
import pytest

from ltpipe.bundles.export import export_bundle
from ltpipe.config.registry import registered
from ltpipe.predict import load
from ltpipe.utils.errors import InputError
from tests.bundles.conftest import recorded

FILTER = {"clusters": 12, "epochs": 3, "batch_size": 64, "learning_rate": 0.05, "share": 0.5}
FILTER |= {"likelihood_weight": 0.05}
DLSA = {"filter": FILTER, "learning_rate": 0.1, "epochs": 3}
SMALL = {
    "dlsa": {**DLSA, "blocks": 2},
    "cached-splitting": {"subclasses": "counts"},
    "label-mapping": {},
    "calibrated": {
        "backbones": {"ce": "ce"},
        "members": {"head": {"kind": "classifier", "backbones": {"features": "ce"}, "epochs": 2}},
    },
    "stacked": {
        "backbones": {"ce": "ce", "kps": "kps"},
        "members": {
            "fused": {"kind": "ffn", "backbones": {"ce": "ce", "kps": "kps"}, "epochs": 2},
            "own": {"kind": "backbone-head", "backbones": {"features": "kps"}},
            "means": {"kind": "ncm", "backbones": {"features": "ce"}},
        },
    },
}
ORACLES = {"oracle-mask"}
CASES = [(kind, SMALL.get(kind, {})) for kind in registered("method") if kind not in ORACLES]
CASES += [
    ("backbone-head", {"played": {"features": "kps"}}),
    ("backbone-head", {"played": {"features": "paco"}}),
    ("backbone-head", {"played": {"features": "towers"}}),
    ("classifier", {"played": {"features": "towers"}, "epochs": 2}),
    ("classifier", {"head": "cosine", "loss": {"name": "ldam"}, "epochs": 2}),
    ("classifier", {"head": "cosine", "rows": "squashed", "epochs": 2}),
    ("classifier", {"loss": {"name": "balanced-softmax"}, "epochs": 2}),
    ("ncm", {"distance": "cosine"}),
    ("ride", {"head": "linear", "loss": {"name": "ce"}, "experts": 3, "epochs": 2}),
    ("logit-fusion", {"space": "probability", "w1": 0.3}),
    ("label-mapping", {"mapping": "marginal"}),
    ("label-mapping", {"mapping": "alternating"}),
    ("label-mapping", {"loss": {"name": "ldam"}, "input": "softmax", "epochs": 2}),
    ("cached-splitting", {"subclasses": "counts", "mapping": "mlp", "epochs": 2}),
    ("dlsa", {**DLSA, "blocks": 0}),
    ("dlsa", {**DLSA, "blocks": 1, "classifier": "cosine", "form": "released"}),
    ("dlsa", {**DLSA, "blocks": 1, "classifier": "ride", "use_latent": False}),
    ("hrjba", {"routing": "concat"}),
    ("hrjba", {"routing": "temperature", "prior": "class-share"}),
    ("hrjba", {"routing": "energy"}),
    ("hrjba", {"routing": "gate"}),
    ("hrjba", {"routing": "gate", "soft": True}),
    ("hrjba", {"routing": "flow", "filter": FILTER}),
    ("ecvl", {"adapter": {"relu": False, "bias": False}, "epochs": 2}),
]
# The released settings of these give one point too.
ONE_POINT = {"logit-fusion": {"w1": 0.4}}


def named(case):
    kind, settings = case
    return "-".join([kind, *(str(v) for v in settings.values() if isinstance(v, str | bool | int))])


def run(world, number, kind, settings):
    settings = {**ONE_POINT.get(kind, {}), **settings}
    played = settings.pop("played", None)
    return world.result(kind, settings, f"{kind}-{number}", played=played)


@pytest.mark.parametrize("case", CASES, ids=named)
def test_a_bundle_predicts_what_the_pipeline_did(case, world, images, tmp_path):
    result = run(world, CASES.index(case), *case)
    export_bundle(result, tmp_path / "bundle")
    labels, probabilities = load(tmp_path / "bundle", "cpu").predict(images)
    expected, scores = recorded(result)
    assert np.array_equal(labels, expected)
    np.testing.assert_allclose(probabilities, scores, rtol=1e-4, atol=1e-6)
    # Not a constant: what is compared depends on the image.
    assert np.ptp(scores, axis=0).max() > 0.01


@pytest.mark.parametrize(
    ("kind", "settings"), [*((kind, {}) for kind in ORACLES), ("hrjba", {"routing": "oracle"})]
)
def test_an_oracle_has_no_bundle(kind, settings, world, tmp_path):
    result = world.result(kind, settings, f"oracle-{kind}")
    with pytest.raises(InputError, match="nobody knows of a new one; it can't be exported"):
        export_bundle(result, tmp_path / "bundle")
    assert not list(tmp_path.iterdir())
