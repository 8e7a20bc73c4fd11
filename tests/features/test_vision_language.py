"""What is cached of towers equals what they say."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from ltpipe.config.backbones import VisionLanguage
from ltpipe.data.loading import open_split
from ltpipe.data.randaugment import rand_augment
from ltpipe.data.subset import read_subset
from ltpipe.features.store import FeatureStore
from ltpipe.models.vision_language import (
    build_prompts,
    build_towers,
    encode_images,
    encode_texts,
    load_towers,
)
from ltpipe.stage1 import vision_language
from ltpipe.utils.seeding import generator
from tests.support import CPU, DIGITS, draw, embed, run_job
from tests.support import TOWERS as BACKBONE

LADDER = {"strengths": 3, "draws": 2, "floor": 5.0}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    base = tmp_path_factory.mktemp("dump")
    data = draw(base)
    spec = {"kind": "stage1", "dataset": DIGITS, "backbone": BACKBONE, "seed": 0}
    run_job(vision_language, spec, base / "stage1", data=data)
    embed(base / "features", BACKBONE, base / "stage1", data, ladder=LADDER)
    return base


@pytest.fixture(scope="module")
def towers(made):
    found = build_towers(VisionLanguage.model_validate(BACKBONE))
    load_towers(found, made / "stage1/model.safetensors")
    return found.requires_grad_(False)


def images_of(made, split, draws=None):
    subset = read_subset(made / "data/subset.h5")
    opened = open_split(DIGITS, subset, split, CPU, None)
    (batch,) = opened.batches.epoch(torch.arange(len(opened.labels)), 4096, draws)
    return batch


def encoded(towers, batch):
    return encode_images(towers, (batch.float() / 255 - 0.3) / 0.4).numpy()


def test_features_texts_and_logits_are_the_towers(made, towers):
    store = FeatureStore.open(made / "features/test.h5")
    features = encoded(towers, images_of(made, "test"))
    np.testing.assert_allclose(store.features, features, rtol=1e-4, atol=1e-5)
    settings = VisionLanguage.model_validate(BACKBONE)
    text = encode_texts(towers, build_prompts(towers, store.class_names, settings))
    np.testing.assert_allclose(store.text, text.numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(store.text, axis=1), 1, rtol=1e-5)
    expected = 10 * F.normalize(torch.from_numpy(features)) @ text.T
    np.testing.assert_allclose(store.logits, expected.numpy(), rtol=1e-3, atol=1e-3)
    assert store.attributes["logit_scale"] == pytest.approx(10)
    assert "random initial weights, not pretrained" in store.attributes["towers"]
    assert json.loads(store.attributes["ladder"])["floor"] == 5.0
    assert store.views is None


def test_views_are_standard_ones_and_then_a_ladder(made, towers):
    store = FeatureStore.open(made / "features/train.h5")
    thirds = [round(rung / 3, 6) for rung in (1, 1, 2, 2, 3, 3)]
    np.testing.assert_allclose(store.view_strength, [0, 0, *thirds], rtol=1e-6)
    assert store.views.shape == (8, len(store.labels), 64)
    assert np.array_equal(store.standard_views(), store.views[:2])
    for view, strength in enumerate([0, 0, *thirds]):
        # The standard augmentation, drawn as for every backbone; then one memory for all.
        batch = images_of(made, "train", generator(0, "view", 0, view))
        if strength:
            draws = generator(0, "randaugment", 0, view)
            batch = rand_augment(batch, torch.full((len(batch),), strength), draws, floor=5.0)
        expected = encoded(towers, batch)
        np.testing.assert_allclose(store.views[view], expected, rtol=5e-3, atol=5e-3)


def test_stronger_views_lie_farther_from_the_standard_ones(made):
    store = FeatureStore.open(made / "features/train.h5")
    units = store.views / np.linalg.norm(store.views, axis=2, keepdims=True).astype(np.float32)
    plain = store.features / np.linalg.norm(store.features, axis=1, keepdims=True)
    cosines = (units * plain).sum(2).mean(1)
    assert cosines[:2].min() > cosines[2:4].mean() > cosines[6:].mean()


def test_methods_that_know_no_ladder_see_the_standard_views_alone(made):
    from ltpipe.stage2.core.batches import Sampling
    from ltpipe.stage2.core.retraining import training_batches

    store = FeatureStore.open(made / "features/train.h5")
    batches = training_batches(store, Sampling(sampler="shuffle"), 4096, 0, CPU)
    assert len(batches.rows.table) == 2 * len(store.labels)


def test_a_split_without_samples_is_a_file_without_rows(made):
    assert FeatureStore.open(made / "features/val.h5").features.shape == (0, 64)


def test_the_dump_says_how_long_100_images_take(made, tmp_path):
    from ltpipe.features import vision_language as dump

    spec = {
        "kind": "features",
        "dataset": DIGITS,
        "backbone": BACKBONE,
        "features": {"precision": "fp32"},
        "seed": 0,
    }
    facts = run_job(dump, spec, tmp_path / "f", stage1=made / "stage1", data=made / "data")
    assert 0 < facts["latency_s_per_100_images"] < 10
    assert facts["towers"].startswith("small-vit: random")
