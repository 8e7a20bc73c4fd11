"""model.onnx gives what the bundle gives, in batches of any size."""

from __future__ import annotations

import json

import numpy as np
import pytest

from ltpipe.bundles import graph
from ltpipe.bundles.export import export_bundle
from ltpipe.predict import load
from ltpipe.utils.errors import InputError
from tests.bundles.test_every_method import DLSA

pytestmark = pytest.mark.heavy

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
# One of each kind of graph: two backbones, distances, log priors, a cascade, towers.
GRAPHS = [
    ("ffn", {"w1": 0.4, "epochs": 2}),
    ("ncm", {}),
    ("logit-adjusted", {}),
    ("dlsa", {**DLSA, "blocks": 2}),
    ("zero-shot", {}),
]


@pytest.mark.parametrize(("kind", "settings"), GRAPHS, ids=[kind for kind, _ in GRAPHS])
def test_the_graph_is_the_bundle(kind, settings, world, images, tmp_path):
    export_bundle(world.result(kind, settings, f"graph-{kind}"), tmp_path / "b", onnx=True)
    values = json.loads((tmp_path / "b/bundle.json").read_text())
    assert values["onnx"]["max_difference"] < 1e-4
    assert "model.onnx" in values["files"]
    session = onnxruntime.InferenceSession(tmp_path / "b/model.onnx")
    expected = load(tmp_path / "b", "cpu").predict(images[:50])
    (found,) = session.run(
        None, {"images": np.ascontiguousarray(images[:50].transpose(0, 3, 1, 2))}
    )
    np.testing.assert_allclose(found, expected.probabilities, rtol=1e-3, atol=1e-5)
    assert np.array_equal(found.argmax(1), expected.labels)


def test_a_graph_that_differs_is_not_written(world, tmp_path, monkeypatch):
    result = world.result("classifier", {"epochs": 2}, "graph-off")
    monkeypatch.setattr(graph, "TOLERANCE", -1.0)
    with pytest.raises(InputError, match="the ONNX graph's probabilities differ by"):
        export_bundle(result, tmp_path / "b", onnx=True)
    assert not list(tmp_path.iterdir())


def test_a_method_without_a_graph_says_so(world, tmp_path, monkeypatch):
    result = world.result("classifier", {"epochs": 2}, "graph-none")

    def refuse(*_args, **_kwargs):
        raise RuntimeError("no such operator\nmany more lines")

    monkeypatch.setattr(graph.torch.onnx, "export", refuse)
    message = "classifier can't be written as an ONNX graph: RuntimeError: no such operator; export"
    with pytest.raises(InputError, match=message):
        export_bundle(result, tmp_path / "b", onnx=True)
    assert not list(tmp_path.iterdir())
