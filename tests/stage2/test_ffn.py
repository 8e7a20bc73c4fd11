"""FFN from stores to metrics: what it learns from, what it reports, what it refuses."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from ltpipe.artifacts.job import Job
from ltpipe.features.store import FeatureStore, write_features
from ltpipe.losses.margin import LDAMLoss
from ltpipe.stage2.core.batches import Draws
from ltpipe.stage2.core.heads import random_classifier
from ltpipe.stage2.core.results import read_predictions
from ltpipe.stage2.ffn import job as ffn
from ltpipe.stage2.simple import backbone_head
from ltpipe.testing import make_store
from ltpipe.utils.errors import InputError
from ltpipe.utils.seeding import generator
from tests.support import CE, CPU, DIGITS, KPS, draw, embed, train


@pytest.fixture
def stores(tmp_path):
    for number, role in enumerate(("ce", "kps")):
        make_store(tmp_path / role, number)
    return tmp_path


def run(stores, name="out", seed=0, **settings):
    output = stores / name
    output.mkdir()
    spec = {"kind": "stage2", "groups": "ranks", "seed": seed}
    spec["method"] = {"kind": "ffn", "epochs": 4, **settings}
    inputs = {f"features.{role}": stores / role for role in ("ce", "kps")}
    ffn.run(Job(spec=spec, inputs=inputs, output=output, device=CPU))
    return output


def rewrite(path, **changes):
    """Write a store again with changes; None drops a data set."""
    store = FeatureStore.open(path)
    values = {
        name: getattr(store, name)
        for name in ("features", "labels", "index", "views", "logits", "classifier_weight")
    }
    attributes = {**store.attributes, **changes.pop("attributes", {})}
    values.update(changes)
    write_features(
        path,
        class_names=store.class_names,
        class_counts=store.class_counts,
        attributes={key: int(value) for key, value in attributes.items()},
        **values,
    )


def test_it_starts_from_the_kps_classifier_unless_told_otherwise(stores):
    slow = {"learning_rate": 1e-12, "weight_decay": 0.0}
    kept = load_file(run(stores, "kept", **slow) / "models.safetensors")["weight"][0]
    start = FeatureStore.open(stores / "kps/train.h5").classifier_weight
    np.testing.assert_allclose(kept.numpy(), start, rtol=1e-5)
    drawn = load_file(run(stores, "drawn", initial="random", **slow) / "models.safetensors")
    norms = torch.linalg.vector_norm(drawn["weight"][0], dim=1)
    torch.testing.assert_close(norms, torch.ones(5))
    other = load_file(run(stores, "other", seed=1, initial="random", **slow) / "models.safetensors")
    assert not torch.equal(drawn["weight"], other["weight"])


def test_a_sweep_equals_its_points_alone(stores):
    together = load_file(run(stores, "all", w1=[0.0, 0.4, 1.0]) / "models.safetensors")["weight"]
    for place, w1 in enumerate([0.0, 0.4, 1.0]):
        alone = load_file(run(stores, f"w{place}", w1=w1) / "models.safetensors")["weight"][0]
        torch.testing.assert_close(together[place], alone, rtol=1e-5, atol=1e-5)


def test_the_last_epoch_counts_and_the_best_on_test_only_stands_beside_it(stores):
    """The official code keeps the epoch that is best on the test set."""
    plain = pd.read_csv(run(stores, "plain", learning_rate=0.5) / "metrics.csv")
    both = pd.read_csv(run(stores, "both", learning_rate=0.5, best_test=True) / "metrics.csv")
    assert set(plain["protocol"]) == {"last"}
    assert set(both["protocol"]) == {"last", "best_test"}
    last = both[both["protocol"] == "last"].reset_index(drop=True)
    pd.testing.assert_frame_equal(last, plain)
    accuracy = both[both["metric"] == "accuracy"].set_index("protocol")["value"]
    assert accuracy["best_test"] >= accuracy["last"]


@pytest.mark.parametrize(
    ("settings", "tag"),
    [
        ({"train_bn": True}, "last+train_bn"),
        ({"subset_mismatch": True}, "last+subset_mismatch"),
        ({"train_bn": True, "subset_mismatch": True}, "last+train_bn+subset_mismatch"),
    ],
)
def test_flags_show_in_the_protocol(stores, settings, tag):
    table = pd.read_csv(run(stores, **settings) / "metrics.csv")
    assert set(table["protocol"]) == {tag}


def test_margins_follow_counts_and_not_the_order_of_classes():
    """The official code reverses a list, which is right for sorted classes only."""
    counts = [5, 300, 40]
    margins = LDAMLoss(counts).margins.numpy()
    expected = np.array(counts, float) ** -0.25
    np.testing.assert_allclose(margins, 0.5 * expected / expected.max(), rtol=1e-6)


@pytest.mark.parametrize(
    ("role", "split", "change", "settings", "message"),
    [
        ("ce", "train", {"attributes": {"view_seed": 1}}, {}, "hold different views"),
        ("ce", "train", {"views": np.zeros((1, 98, 8), np.float16)}, {}, "hold different views"),
        ("kps", "train", {"views": None}, {}, "set features.views"),
        ("kps", "train", {"classifier_weight": None}, {}, "no stage-one classifier"),
        ("kps", "test", {"index": np.arange(100)[::-1].copy()}, {}, "different samples"),
    ],
)
def test_stores_that_do_not_belong_together_are_refused(
    stores, role, split, change, settings, message
):
    path = stores / role / f"{split}.h5"
    if isinstance(change.get("views"), np.ndarray):
        samples = len(FeatureStore.open(path).labels)
        change = {"views": np.zeros((1, samples, 8), np.float16)}
    rewrite(path, **change)
    with pytest.raises(InputError, match=message):
        run(stores, **settings)
    assert list((stores / "out").iterdir()) == []


def test_features_of_other_size_are_refused(stores):
    path = stores / "ce/train.h5"
    store = FeatureStore.open(path)
    rewrite(
        path,
        features=store.features[:, :4].copy(),
        views=store.views[:, :, :4].copy(),
        classifier_weight=None,
    )
    with pytest.raises(InputError, match="features of equal size"):
        run(stores)


def test_backbone_head_needs_logits(stores):
    for split in ("train", "test"):
        rewrite(stores / "ce" / f"{split}.h5", logits=None)
    spec = {"kind": "stage2", "groups": "ranks", "seed": 0, "method": {"kind": "backbone-head"}}
    (stores / "out").mkdir()
    job = Job(
        spec=spec, inputs={"features.features": stores / "ce"}, output=stores / "out", device=CPU
    )
    with pytest.raises(InputError, match="has no logits"):
        backbone_head.run(job)


def test_online_equals_the_cache_where_nothing_is_augmented(tmp_path):
    dataset = {**DIGITS, "input": {**DIGITS["input"], "padding": 0}}
    data = draw(tmp_path)
    inputs = {"data": data}
    backbones = {"ce": CE, "kps": KPS}
    for role, backbone in backbones.items():
        inputs[f"stage1.{role}"] = train(tmp_path / f"s-{role}", backbone, data)
        inputs[f"features.{role}"] = embed(
            tmp_path / f"f-{role}", backbone, inputs[f"stage1.{role}"], data
        )
    weights = {}
    for name, choice in (("online", {"online": True}), ("cached", {"views": "plain"})):
        output = tmp_path / name
        output.mkdir()
        method = {"kind": "ffn", "epochs": 4, "w1": [0.0, 0.5], **choice}
        spec = {"groups": "ranks", "seed": 0, "method": method}
        spec |= {"dataset": dataset, "backbones": backbones}
        ffn.run(Job(spec=spec, inputs=inputs, output=output, device=CPU))
        weights[name] = load_file(output / "models.safetensors")["weight"]
    start = FeatureStore.open(inputs["features.kps"] / "train.h5").classifier_weight
    assert (weights["online"] - torch.from_numpy(start)).abs().max() > 0.01
    torch.testing.assert_close(weights["online"], weights["cached"], rtol=1e-3, atol=1e-4)


def test_raw_features_are_mixed_under_a_linear_classifier(stores):
    """Eq. 14 as printed, one step after another in a NumPy loop over the same draws."""
    folder = run(
        stores, "raw", normalise=False, initial="random", w1=0.3, scale=2.0, views="plain",
        epochs=2, learning_rate=0.05, schedule="constant", batch_size=50, weight_decay=0.01,
    )  # fmt: skip
    made = load_file(folder / "models.safetensors")
    ce, kps = (FeatureStore.open(stores / role / "train.h5") for role in ("ce", "kps"))
    mixed = 0.3 * kps.features.astype(np.float64) + 0.7 * ce.features
    start = random_classifier(5, 8, generator(0, "classifier"), cosine=False)
    weight, bias = (start[name].double().numpy() for name in ("weight", "bias"))
    momentum = [np.zeros_like(weight), np.zeros_like(bias)]
    margins = 0.5 * np.array(kps.class_counts) ** -0.25 / np.min(kps.class_counts) ** -0.25
    draws = Draws(torch.from_numpy(kps.labels), 1, 0, classes=5, sampler="balanced")
    for epoch in range(2):
        rows, targets = draws.epoch(epoch)
        for batch, target in zip(rows.split(50), targets.split(50), strict=True):
            x, y = mixed[batch.numpy()], target.numpy()
            z = 2.0 * (x @ weight.T + bias - margins * np.eye(5)[y])
            p = np.exp(z - z.max(1, keepdims=True))
            error = 2.0 * (p / p.sum(1, keepdims=True) - np.eye(5)[y]) / len(y)
            gradients = [error.T @ x + 0.01 * weight, error.sum(0) + 0.01 * bias]
            momentum = [0.9 * m + g for m, g in zip(momentum, gradients, strict=True)]
            weight, bias = weight - 0.05 * momentum[0], bias - 0.05 * momentum[1]
    np.testing.assert_allclose(made["weight"][0].numpy(), weight, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(made["bias"][0].numpy(), bias, rtol=1e-4, atol=1e-5)
    tests = [FeatureStore.open(stores / role / "test.h5").features for role in ("ce", "kps")]
    z = 2.0 * ((0.7 * tests[0] + 0.3 * tests[1]) @ weight.T + bias)
    p = np.exp(z - z.max(1, keepdims=True))
    np.testing.assert_allclose(
        read_predictions(folder).scores[0], p / p.sum(1, keepdims=True), rtol=1e-3, atol=1e-5
    )


def test_raw_features_can_start_from_the_kps_classifier(stores):
    slow = {"learning_rate": 1e-12, "weight_decay": 0.0, "normalise": False}
    made = load_file(run(stores, "kept", **slow) / "models.safetensors")
    start = FeatureStore.open(stores / "kps/train.h5").classifier_weight
    np.testing.assert_allclose(made["weight"][0].numpy(), start, rtol=1e-5)
    np.testing.assert_allclose(made["bias"][0].numpy(), np.zeros(5), atol=1e-9)
