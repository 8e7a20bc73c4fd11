"""What is cached equals what the network says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from ltpipe.config.backbones import Backbone
from ltpipe.data.loading import open_split
from ltpipe.data.sampling import epoch_order
from ltpipe.data.subset import read_subset
from ltpipe.features.store import FeatureStore
from ltpipe.models.building import build_network, load_weights
from ltpipe.utils.seeding import generator
from tests.support import CE, CPU, DIGITS, KPS, draw, embed, train


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    base = tmp_path_factory.mktemp("extract")
    data = draw(base)
    folders = {"data": data}
    for name, backbone in (("ce", CE), ("kps", KPS)):
        folders[f"stage1-{name}"] = train(base / f"stage1-{name}", backbone, data)
        folders[name] = embed(base / name, backbone, folders[f"stage1-{name}"], data)
    return folders


def network_of(made, name, backbone):
    network = build_network(Backbone.model_validate(backbone), 10, 1)
    load_weights(network, made[f"stage1-{name}"] / "model.safetensors")
    return network.eval()


def images_of(made, split="test", draws=None):
    subset = read_subset(made["data"] / "subset.h5")
    opened = open_split(DIGITS, subset, split, CPU, None)
    batches = opened.batches.epoch(torch.arange(len(opened.labels)), 256, draws)
    return (torch.cat(list(batches)).float() / 255 - 0.3) / 0.4


@torch.no_grad()
def test_features_and_logits_are_those_of_a_plain_forward_pass(made):
    images = images_of(made).contiguous()
    for name, backbone in (("ce", CE), ("kps", KPS)):
        network = network_of(made, name, backbone)
        store = FeatureStore.open(made[name] / "test.h5")
        features = network.features(images)
        np.testing.assert_allclose(store.features, features.numpy(), rtol=1e-3, atol=1e-4)
        weight = torch.from_numpy(FeatureStore.open(made[name] / "train.h5").classifier_weight)
        if name == "kps":
            expected = 15 * F.normalize(features) @ F.normalize(weight).T
        else:
            expected = features @ weight.T + network.head.bias
        np.testing.assert_allclose(store.logits, expected.numpy(), rtol=1e-3, atol=2e-3)


@torch.no_grad()
def test_view_v_is_the_same_crop_for_every_backbone(made):
    for view in range(2):
        images = images_of(made, "train", generator(0, "view", 0, view))
        for name, backbone in (("ce", CE), ("kps", KPS)):
            views = FeatureStore.open(made[name] / "train.h5").views
            features = network_of(made, name, backbone).features(images).numpy()
            np.testing.assert_allclose(views[view], features, rtol=2e-3, atol=2e-3)


def test_a_features_value_does_not_depend_on_its_batch(made, tmp_path):
    """The official FFN code leaves the CE branch in training mode, where it does."""
    other = embed(tmp_path / "f", CE, made["stage1-ce"], made["data"], batch_size=7)
    first = FeatureStore.open(made["ce"] / "test.h5").features
    again = FeatureStore.open(other / "test.h5").features
    np.testing.assert_allclose(first, again, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_train_bn_repeats_the_official_defect(made, tmp_path):
    before = (made["stage1-ce"] / "model.safetensors").read_bytes()
    folder = embed(tmp_path / "f", CE, made["stage1-ce"], made["data"], train_bn=True)
    found = FeatureStore.open(folder / "test.h5").features
    network = network_of(made, "ce", CE).train()
    images = images_of(made)
    expected = torch.cat([network.features(batch) for batch in images.split(256)])
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-3, atol=1e-4)
    plain = FeatureStore.open(made["ce"] / "test.h5").features
    assert np.abs(found - plain).max() > 0.01
    assert (made["stage1-ce"] / "model.safetensors").read_bytes() == before


def test_a_split_without_samples_is_a_file_without_rows(made):
    store = FeatureStore.open(made["ce"] / "val.h5")
    assert store.features.shape == (0, 64)
    assert store.class_counts == FeatureStore.open(made["ce"] / "train.h5").class_counts


def test_re_estimated_statistics_are_those_of_balanced_batches_of_augmented_images(made, tmp_path):
    """A loop over the same batches in float64, by BatchNorm's own rule (momentum 0.1)."""
    shifted = embed(tmp_path / "f", CE, made["stage1-ce"], made["data"], batch_norm="re-estimated")
    found = FeatureStore.open(shifted / "test.h5")
    subset = read_subset(made["data"] / "subset.h5")
    train_split = open_split(DIGITS, subset, "train", CPU, None)
    order = epoch_order(train_split.labels, 10, "balanced", generator(0, "statistics"))
    network = network_of(made, "ce", CE).double()
    norms = [module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    seen = {}
    for norm in norms:
        norm.register_forward_pre_hook(lambda m, inputs: seen.__setitem__(m, inputs[0].detach()))
    expected = {norm: (norm.running_mean.clone(), norm.running_var.clone()) for norm in norms}
    with torch.no_grad():
        for batch in train_split.batches.epoch(order, 16, generator(0, "statistics augment")):
            if len(batch) < 2:
                continue
            network.train().features((batch.double() / 255 - 0.3) / 0.4)
            for norm in norms:
                maps = seen[norm].transpose(0, 1).flatten(1)
                mean, var = expected[norm]
                expected[norm] = (
                    0.9 * mean + 0.1 * maps.mean(1),
                    0.9 * var + 0.1 * maps.var(1, correction=1),
                )
        for norm, (mean, var) in expected.items():
            norm.running_mean.copy_(mean)
            norm.running_var.copy_(var)
        features = network.eval().features(images_of(made).double())
    np.testing.assert_allclose(found.features, features.numpy(), rtol=2e-3, atol=2e-3)
    plain = FeatureStore.open(made["ce"] / "test.h5").features
    assert np.abs(found.features - plain).max() > 0.05
    assert found.attributes["batch_norm"] == "re-estimated"
