"""DLSA: filters that find what they should, cascades that answer every sample once."""

from __future__ import annotations

import dataclasses

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from ltpipe.artifacts.job import Job
from ltpipe.features.store import FeatureStore, write_features
from ltpipe.losses.base import SoftmaxForm
from ltpipe.stage2.core.filters import flow_of, write_blocks
from ltpipe.stage2.core.logit_gradients import SoftmaxGradient
from ltpipe.stage2.core.settings import FlowFilter
from ltpipe.stage2.dlsa import filter as flow_filter
from ltpipe.stage2.dlsa import job as dlsa
from ltpipe.stage2.dlsa.cosine_parts import CosinePartsModel, cosine_part_logits
from ltpipe.stage2.dlsa.settings import DLSA
from ltpipe.testing import check_method
from ltpipe.utils.errors import InputError
from tests.support import CPU

SMALL = {
    "clusters": 12,
    "epochs": 25,
    "batch_size": 64,
    "learning_rate": 0.05,
    "likelihood_weight": 0.05,
}
FAST = {"learning_rate": 0.1, "momentum": 0.9, "batch_size": 16, "epochs": 20}
CLASSIFIERS = ["balanced-softmax", "class-balanced-sampling", "cosine", "m2m", "ride"]


@pytest.mark.parametrize("classifier", CLASSIFIERS)
@pytest.mark.parametrize("blocks", [0, 1, 3])
def test_every_classifier_keeps_the_promises_of_methods(classifier, blocks, tmp_path):
    quick = {**SMALL, "epochs": 3}
    check_method("dlsa", tmp_path, classifier=classifier, blocks=blocks, filter=quick, **FAST)


@pytest.mark.parametrize(
    "settings",
    [
        {"use_latent": False, "prior": "all", "best_test": True},
        {"initial": "backbone"},
        {"filter": {**SMALL, "batch_norm": False}},
        {"filter": {**SMALL, "select": "pure-clusters", "precision": "bf16"}},
    ],
)
def test_other_settings_keep_them_too(settings, tmp_path):
    check_method("dlsa", tmp_path, **{"filter": SMALL, "blocks": 2, **FAST, **settings})


COUNTS = [60, 55, 13, 13, 12, 12]


def store(folder, seed, kind="apart"):
    """Write features of two head classes and four tail classes in 8 dimensions.

    `apart`: a cluster for each class. `mirrored`: two clusters for each class, on opposite sides,
    which no linear classifier can tell from the others. `noise`: nothing to find.
    """
    stream = np.random.default_rng(seed)
    centres = 6 * np.linalg.qr(stream.normal(size=(8, 8)))[0][:6]
    for split, sizes in (("train", COUNTS), ("test", [60] * 6)):
        labels = np.repeat(np.arange(6), sizes)
        features = 0.5 * stream.normal(size=(len(labels), 8))
        if kind != "noise":
            side = stream.choice([-1, 1], len(labels)) if kind == "mirrored" else 1
            features += centres[labels] * np.reshape(side, (-1, 1))
        write_features(
            folder / f"{split}.h5",
            features=features.astype(np.float32),
            labels=labels,
            class_names=list("abcdef"),
            class_counts=COUNTS,
            classifier_weight=np.zeros((6, 8), np.float32),
        )
    return folder


def filtered(folder, settings, block=1, seed=0, **inputs):
    output = folder / f"filter{block}"
    output.mkdir(exist_ok=True)
    spec = {"kind": "filter", "filter": settings, "block": block, "seed": seed}
    flow_filter.run(
        Job(spec=spec, inputs={"features": folder, **inputs}, output=output, device=CPU)
    )
    return output


def run(folder, output, blocks, **settings):
    output.mkdir(exist_ok=True)
    inputs = {"features.features": folder}
    inputs |= {f"filter.{n}": folder / f"filter{n}" for n in range(1, blocks + 1)}
    method = {"kind": "dlsa", "filter": SMALL, "blocks": blocks, **FAST, **settings}
    spec = {"method": method, "groups": "ranks", "seed": 0}
    dlsa.run(Job(spec=spec, inputs=inputs, output=output, device=CPU))
    table = pd.read_csv(output / "metrics.csv")
    accuracy = table[table["metric"] == "accuracy"]["value"].item()
    return accuracy, pd.read_csv(output / "blocks.csv")


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("kind", ["apart", "mirrored"])
def test_tail_clusters_are_separated_and_help_what_a_linear_map_cannot_do(tmp_path, seed, kind):
    folder = store(tmp_path, seed, kind)
    filtered(folder, SMALL, seed=seed)
    accuracy, blocks = run(folder, tmp_path / "out", 1)
    plain, _ = run(folder, tmp_path / "plain", 0)
    assert blocks["separation"].item() > 0.95
    assert blocks["tail_share"].item() == pytest.approx(4 / 6)
    # What the quantile leaves behind of the tail is answered by a classifier that hardly knows it.
    assert accuracy > (0.9 if kind == "apart" else plain + 0.1)


def test_without_structure_it_does_no_harm(tmp_path):
    gains = []
    for seed in range(5):
        folder = store(tmp_path / str(seed), seed, "noise")
        filtered(folder, SMALL, seed=seed)
        accuracy, _ = run(folder, tmp_path / f"{seed}/out", 1)
        plain, _ = run(folder, tmp_path / f"{seed}/plain", 0)
        gains.append(accuracy - plain)
    assert np.mean(gains) > -0.01


def quantities(folder, seed, **settings):
    """Balance loss of the last epoch, purity of clusters, mean tail likelihood of one filter."""
    weights = {"likelihood_weight": 0.02, "balance_weight": 3.0, "purity_weight": 0.5}
    output = filtered(store(folder, seed), {**SMALL, **weights, **settings}, seed=seed)
    block = flow_filter.read_block(output / "filter.h5", "train")
    labels = np.repeat(np.arange(6), COUNTS)
    balance = pd.read_csv(output / "history.csv")["balance"].iloc[-1]
    purity = dlsa.purity(block.cluster, labels)
    return np.array([balance, purity, block.log_likelihood[labels >= 2].mean()])


def test_each_loss_moves_what_it_is_there_for(tmp_path):
    found = {
        name: np.mean([quantities(tmp_path, seed, **change) for seed in range(5)], axis=0)
        for name, change in (
            ("all", {}),
            ("no balance", {"balance_weight": 0.0}),
            ("no purity", {"purity_weight": 0.0}),
            ("no likelihood", {"likelihood_weight": 0.0}),
        )
    }
    assert found["all"][0] < found["no balance"][0] - 0.03
    assert found["all"][1] > found["no purity"][1] + 0.01
    assert found["all"][2] > found["no likelihood"][2] + 10


def test_the_threshold_is_the_quantile_of_members():
    values = np.random.default_rng(0).permutation(10).astype(np.float32)
    threshold = flow_filter.quantile_threshold(values, 0.3)
    assert sorted(values[values >= threshold]) == [7, 8, 9]
    assert flow_filter.quantile_threshold(values[:1], 0.3) == np.inf
    assert flow_filter.quantile_threshold(values[:0], 0.3) == np.inf


def test_a_cascade_halves_what_is_left_and_answers_every_sample_once(tmp_path):
    folder = store(tmp_path, 0)
    quick = {**SMALL, "epochs": 2}
    previous = {}
    shares = []
    for block in (1, 2, 3):
        output = filtered(folder, quick, block, **previous)
        previous = {"previous": output}
        found = flow_filter.read_block(output / "filter.h5", "train")
        shares.append((found.member.mean(), found.inside.mean()))
        assert not (found.inside & ~found.member).any()
    expected = [(1, 0.3), (0.7, 0.21), (0.49, 0.147)]
    np.testing.assert_allclose(shares, expected, atol=0.01)
    taken = np.sum(
        [
            flow_filter.read_block(folder / f"filter{n}" / "filter.h5", "test").inside
            for n in (1, 2, 3)
        ],
        axis=0,
    )
    passed = flow_filter.read_block(folder / "filter3/filter.h5", "test").passed
    assert (taken + passed == 1).all()


def test_a_group_of_one_class_and_an_empty_one_are_defined(tmp_path):
    folder = store(tmp_path, 0)
    output = filtered(folder, {**SMALL, "epochs": 1})
    block = flow_filter.read_block(output / "filter.h5", "train")
    test = flow_filter.read_block(output / "filter.h5", "test")
    # The second filter sees what the first lets pass: one class, then nothing.
    labels = np.repeat(np.arange(6), COUNTS)
    one_class = dataclasses.replace(block, inside=labels != 5)
    write_blocks(output / "filter.h5", {"train": one_class, "test": test}, 0.0)
    second = filtered(folder, {**SMALL, "epochs": 2}, 2, previous=output)
    assert flow_filter.read_block(second / "filter.h5", "train").member.sum() == COUNTS[5]
    everything = dataclasses.replace(block, inside=np.ones_like(block.inside))
    write_blocks(output / "filter.h5", {"train": everything, "test": test}, 0.0)
    third = filtered(folder, {**SMALL, "epochs": 2}, 3, previous=output)
    assert not flow_filter.read_block(third / "filter.h5", "test").inside.any()
    accuracy, _ = run(folder, tmp_path / "out", 1)
    assert accuracy > 0.5


def test_cluster_priors_by_loops():
    stream = np.random.default_rng(0)
    cluster, labels = stream.integers(0, 4, 50), stream.integers(0, 3, 50)
    cluster[cluster == 2] = 1
    found = dlsa.cluster_prior(cluster, labels, 4, 3).numpy()
    for k in range(4):
        inside = [y for c, y in zip(cluster, labels, strict=True) if c == k]
        expected = [inside.count(y) / len(inside) if inside else 0 for y in range(3)]
        np.testing.assert_allclose(found[k], expected, atol=1e-6)


def test_purity_by_loops():
    cluster, labels = np.array([0, 0, 0, 1, 1, 3]), np.array([2, 2, 1, 0, 1, 1])
    assert dlsa.purity(cluster, labels) == pytest.approx((2 + 1 + 1) / 6)


def test_a_cosine_of_parts_is_trained_by_its_gradient():
    draws = torch.Generator().manual_seed(0)
    weight = torch.randn(1, 4, 7, generator=draws, dtype=torch.float64)
    inputs = torch.randn(1, 9, 7, generator=draws, dtype=torch.float64)
    target = torch.randint(4, (1, 9), generator=draws)
    model = CosinePartsModel(SoftmaxGradient(SoftmaxForm(), scale=5.0), [5, 2])
    found = model.gradients({"weight": weight}, inputs, target)["weight"][0]
    leaf = weight[0].clone().requires_grad_()
    logits = 0
    for columns in (slice(0, 5), slice(5, 7)):
        x = inputs[0, :, columns]
        x = x / (1 + x.norm(dim=1, keepdim=True))
        logits = logits + x @ F.normalize(leaf[:, columns], dim=1).T
    F.cross_entropy(5 * logits, target[0]).backward()
    torch.testing.assert_close(found, leaf.grad)
    torch.testing.assert_close(cosine_part_logits(weight[0], inputs[0], [5, 2]), logits.detach())


def test_a_diverging_flow_is_one_error(tmp_path):
    folder = store(tmp_path, 0)
    with pytest.raises(InputError, match=r"lower filter\.learning_rate"):
        filtered(folder, {**SMALL, "learning_rate": 1e6})


def test_settings_are_the_released_ones():
    settings = FlowFilter()
    assert (settings.clusters, settings.share, settings.exponent) == (500, 0.3, 2.0)
    method = DLSA.model_validate({"kind": "dlsa", "backbones": {"features": "x"}})
    assert (method.blocks, method.epochs, method.batch_size) == (3, 150, 128)


def test_the_rest_balances_by_its_own_samples_or_by_all_as_released(tmp_path, monkeypatch):
    folder = store(tmp_path, 0)
    filtered(folder, SMALL)
    seen = {}
    original = dlsa.fit_group

    def noted(data, *arguments, **options):
        seen[prior, data.name] = data
        return original(data, *arguments, **options)

    monkeypatch.setattr(dlsa, "fit_group", noted)
    for prior in ("group", "all"):
        run(folder, tmp_path / prior, 1, prior=prior)
    for (prior, name), data in seen.items():
        own = np.bincount(data.labels, minlength=6).tolist()
        expected = COUNTS if (prior, name) == ("all", "rest") else own
        assert data.prior_counts.tolist() == expected
    assert len(seen) == 4


def test_the_best_test_epoch_is_a_row_of_its_own(tmp_path):
    folder = store(tmp_path, 0)
    filtered(folder, SMALL)
    run(folder, tmp_path / "plain", 1)
    spec = {"filter": SMALL, "blocks": 1, **FAST, "best_test": True, "kind": "dlsa"}
    inputs = {"features.features": folder, "filter.1": folder / "filter1"}
    (tmp_path / "best").mkdir()
    job = Job({"method": spec, "groups": "ranks", "seed": 0}, inputs, tmp_path / "best", CPU)
    dlsa.run(job)
    table = pd.read_csv(tmp_path / "best/metrics.csv")
    accuracy = table[table["metric"] == "accuracy"].set_index("protocol")["value"]
    assert set(accuracy.index) == {"last", "best_test"}
    assert accuracy["best_test"] >= accuracy["last"]
    last = table[table["protocol"] == "last"].reset_index(drop=True)
    pd.testing.assert_frame_equal(last, pd.read_csv(tmp_path / "plain/metrics.csv"))


def test_the_best_of_every_fifth_epoch_and_the_last_counts(tmp_path):
    test = FeatureStore.open(store(tmp_path, 0) / "test.h5")
    best = dlsa._BestOnTest(test, 7, CPU)
    inside = np.isin(np.arange(len(test.labels)), [0, 60, 120])
    watch = best.of_group(dlsa.Group("block1", dlsa.Lift(), inside, inside))
    assert test.labels[inside].tolist() == [0, 1, 2]
    right = torch.eye(6)[:3]
    partly = right[[0, 0, 2]]
    for done, answers in [(1, right), (5, partly), (6, right), (7, partly + 1)]:
        watch(done, lambda x, answers=answers: answers)
    assert torch.equal(best.logits[inside], partly)
    assert not best.logits[~inside].any()


def test_the_cascade_answers_as_its_recorded_routes_say(tmp_path):
    """What is computed anew for each sample meets what the filters wrote."""
    folder = store(tmp_path, 0)
    for block in (1, 2):
        inputs = {"previous": folder / "filter1"} if block == 2 else {}
        filtered(folder, SMALL, block, **inputs)
    run(folder, tmp_path / "out", 2)
    routes = pd.read_csv(tmp_path / "out/routes.csv")["block"].to_numpy()
    assert set(routes) == {0, 1, 2}
    test = FeatureStore.open(folder / "test.h5")
    weights = load_file(tmp_path / "out/models.safetensors")
    expected = np.empty((len(routes), 6))
    for i, block in enumerate(routes):
        x = torch.from_numpy(test.features[i : i + 1])
        state = load_file(folder / f"filter{block or 2}/filter.safetensors")
        flow = flow_of(state, FlowFilter(**SMALL), 8)
        output = flow(x)
        parts = [x, output.latent]
        name = f"block{block}" if block else "rest"
        if block:
            parts.append(weights[f"{name}.prior"][0][output.cluster_log_prob.argmax(1)])
        joined = torch.cat(parts, 1)[0].double().numpy()
        z = weights[f"{name}.weight"][0, 0].double().numpy() @ joined
        z += weights[f"{name}.bias"][0, 0].double().numpy()
        expected[i] = np.exp(z - z.max()) / np.exp(z - z.max()).sum()
    with h5py.File(tmp_path / "out/predictions.h5") as file:
        np.testing.assert_allclose(file["scores"][0], expected, rtol=1e-3, atol=1e-5)


def test_the_flow_with_the_most_pure_clusters_is_kept(monkeypatch):
    labels = torch.tensor([0] * 30 + [1] * 30 + [2] * 12)
    together, two, three = (
        np.zeros(72, np.int64),
        np.repeat([0, 1], [30, 42]),
        np.repeat([0, 1, 2], [30, 30, 12]),
    )
    found = iter([together, two, three, two])
    monkeypatch.setattr(flow_filter, "assign", lambda *_: (None, next(found)))
    flow = torch.nn.Linear(1, 1)
    purest = flow_filter._PurestEpoch()
    kept = []
    for epoch in range(4):
        torch.nn.init.constant_(flow.weight, epoch)
        purest(flow, torch.zeros(72, 1), labels)
        kept.append((purest.clusters, float(purest.state["weight"])))
    # 30 of 42 samples of one class are more than 0.7 of a cluster: two pure clusters there.
    assert kept == [(0, 0.0), (2, 1.0), (3, 2.0), (3, 2.0)]


def test_a_collapsed_flow_is_never_the_purest(monkeypatch):
    labels = torch.zeros(5000, dtype=torch.int64)
    monkeypatch.setattr(flow_filter, "assign", lambda *_: (None, np.zeros(5000, np.int64)))
    purest = flow_filter._PurestEpoch()
    purest(torch.nn.Linear(1, 1), torch.zeros(5000, 1), labels)
    assert purest.state is None


def test_routes_say_which_block_takes_each_test_sample(tmp_path):
    folder = store(tmp_path, 0)
    filtered(folder, SMALL)
    filtered(folder, SMALL, block=2, previous=folder / "filter1")
    run(folder, tmp_path / "out", 2)
    routes = pd.read_csv(tmp_path / "out/routes.csv")
    blocks = [flow_filter.read_block(folder / f"filter{n}" / "filter.h5", "test") for n in (1, 2)]
    assert (routes["block"] == 1).tolist() == blocks[0].inside.tolist()
    assert (routes["block"] == 2).tolist() == blocks[1].inside.tolist()
    assert (routes["block"] == 0).tolist() == blocks[1].passed.tolist()
    assert routes["tail"].tolist() == [False] * 120 + [True] * 240
