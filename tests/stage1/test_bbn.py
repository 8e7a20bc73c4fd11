"""BBN: two branches on a shared trunk, trained cumulatively."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from ltpipe.artifacts.job import Job
from ltpipe.config.backbones import BBN, backbone_settings
from ltpipe.data.loading import open_split
from ltpipe.data.sampling import epoch_order
from ltpipe.data.subset import read_subset
from ltpipe.features.store import FeatureStore
from ltpipe.losses.softmax import CrossEntropyLoss
from ltpipe.models.bilateral import BilateralNetwork, bbn_resnet8, bbn_resnet32
from ltpipe.models.building import build_network
from ltpipe.stage1 import bbn
from ltpipe.stage1.bbn import BilateralTask, balance
from ltpipe.utils.errors import InputError
from tests import support
from tests.support import CE, CPU, DIGITS, draw, embed

SPEC = {**CE, "system": "bbn", "network": "bbn-resnet8", "epochs": 6}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return draw(tmp_path_factory.mktemp("bbn"))


@pytest.fixture(scope="module")
def training_set(data):
    return support.training_set(data)


def task_of(training_set, **settings):
    torch.manual_seed(0)
    network = bbn_resnet8(10, in_channels=1)
    values = BBN.model_validate({**SPEC, **settings})
    return BilateralTask(network, CrossEntropyLoss(), training_set, values, 0, CPU)


def train(data, output, checkpoint_every=5):
    spec = {"kind": "stage1", "dataset": DIGITS, "backbone": SPEC, "seed": 3}
    output.mkdir(exist_ok=True)
    bbn.run(Job(spec, {"data": data}, output, CPU, checkpoint_every=checkpoint_every))
    return output


def test_balance_falls_by_the_square_of_the_epoch():
    expected = [1, 0.9375, 0.75, 0.4375]
    assert [balance(epoch, 4) for epoch in range(4)] == expected
    assert balance(199, 200) == pytest.approx(0.009975)


def branch_features(network, images, branch):
    maps = getattr(network, branch)(network.trunk(images))
    return maps.detach().numpy().sum((2, 3)) / (maps.shape[2] * maps.shape[3])


@pytest.mark.parametrize("training", [True, False])
def test_logits_are_those_of_the_weighted_branches(training):
    torch.manual_seed(1)
    network = bbn_resnet8(3).double().train(training)
    with torch.no_grad():
        network.head.bias.normal_()
    images, reverse = torch.randn(2, 4, 3, 8, 8, dtype=torch.float64)
    uniform = branch_features(network, images, "conventional")
    rare = branch_features(network, reverse, "rebalancing")
    weight, bias = network.head.weight.detach().numpy(), network.head.bias.detach().numpy()
    for a in (1.0, 0.75, 0.3, 0.0):
        logits = network(images, reverse, a).detach().numpy()
        for i, c in np.ndindex(4, 3):
            expected = bias[c]
            expected += sum(weight[c, d] * 2 * a * uniform[i, d] for d in range(64))
            expected += sum(weight[c, 64 + d] * 2 * (1 - a) * rare[i, d] for d in range(64))
            assert logits[i, c] == pytest.approx(expected, abs=1e-10)


def test_at_test_time_both_branches_see_the_image_and_weigh_the_same():
    torch.manual_seed(2)
    network = bbn_resnet8(3).double().eval()
    images = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    parts = [branch_features(network, images, b) for b in ("conventional", "rebalancing")]
    features = np.concatenate(parts, axis=1)
    np.testing.assert_allclose(network.features(images).detach(), features, atol=1e-12)
    weight, bias = network.head.weight.detach().numpy(), network.head.bias.detach().numpy()
    np.testing.assert_allclose(network(images).detach(), features @ weight.T + bias, atol=1e-10)
    torch.testing.assert_close(network(images), network(images, images, 0.5))


def test_the_trunk_is_shared_and_the_last_blocks_are_not():
    torch.manual_seed(3)
    network = bbn_resnet32(10)
    # ResNet-32, one more last block, and 64 more inputs of the classifier.
    block = 2 * 64 * 64 * 9 + 4 * 64
    assert sum(p.numel() for p in network.parameters()) == 464_154 + block + 64 * 10
    assert network.feature_dim == 128
    first = dict(network.conventional.named_parameters())
    second = dict(network.rebalancing.named_parameters())
    assert first.keys() == second.keys()
    assert not torch.equal(first["conv1.weight"], second["conv1.weight"])
    network.rebalancing(network.trunk(torch.randn(2, 3, 8, 8))).sum().backward()
    assert all(p.grad is None for p in first.values())
    assert all(p.grad is not None for p in second.values())
    assert all(p.grad is not None for p in network.trunk.parameters())


def cross_entropy(row, label):
    return math.log(sum(math.exp(value) for value in row)) - row[label]


@pytest.mark.parametrize("epoch", [0, 2, 3])
def test_the_loss_mixes_both_targets_by_the_balance(training_set, epoch):
    samples = len(training_set.labels)
    task = task_of(training_set, epochs=4, batch_size=samples)
    ((images, target),) = task._batches(epoch, "shuffle", "order", "augment")
    ((rare, rare_target),) = task._batches(epoch, "reversed", "reverse order", "reverse augment")
    a = 1 - (epoch / 4) ** 2
    rows = task.network.train()(images, rare, a).tolist()
    expected = sum(
        a * cross_entropy(row, y) + (1 - a) * cross_entropy(row, rare_y)
        for row, y, rare_y in zip(rows, target.tolist(), rare_target.tolist(), strict=True)
    )
    total, correct = task.run_epoch(epoch, 0.0)
    assert total == pytest.approx(expected, rel=1e-5)
    predicted = np.argmax(rows, axis=1)
    hits = a * np.sum(predicted == target.numpy())
    hits += (1 - a) * np.sum(predicted == rare_target.numpy())
    assert correct == pytest.approx(hits, rel=1e-5)


def test_one_branch_is_fed_uniformly_and_one_reversely(training_set, monkeypatch):
    orders = {}

    def order(labels, classes, kind, draws):
        orders[kind] = epoch_order(labels, classes, kind, draws)
        return orders[kind]

    seen = []

    def forward(network, images, reverse=None, share=0.5):
        seen.append((images, reverse))
        return original(network, images, reverse, share)

    original = BilateralNetwork.forward
    monkeypatch.setattr(bbn, "epoch_order", order)
    monkeypatch.setattr(BilateralNetwork, "forward", forward)
    samples = len(training_set.labels)
    task = task_of(training_set)
    task.run_epoch(1, 0.01)
    assert orders.keys() == {"shuffle", "reversed"}
    assert sorted(orders["shuffle"].tolist()) == list(range(samples))
    drawn = np.bincount(training_set.labels[orders["reversed"]], minlength=10)
    assert drawn[np.argmin(training_set.class_counts)] > drawn[np.argmax(training_set.class_counts)]
    for number, sampler in ((0, "shuffle"), (1, "reversed")):
        names = ("order", "augment") if number == 0 else ("reverse order", "reverse augment")
        expected = [images for images, _ in task._batches(1, sampler, *names)]
        assert len(seen) == len(expected) > 1
        for found, wanted in zip(seen, expected, strict=True):
            assert torch.equal(found[number], wanted)


def test_the_rebalancing_branch_learns_nothing_in_the_first_epoch(training_set):
    task = task_of(training_set, weight_decay=0.0)
    before = {name: p.detach().clone() for name, p in task.network.named_parameters()}
    task.run_epoch(0, 0.05)
    moved = {n for n, p in task.network.named_parameters() if not torch.equal(p, before[n])}
    assert moved
    assert not {name for name in moved if name.startswith("rebalancing.")}
    task.run_epoch(3, 0.05)
    moved = {n for n, p in task.network.named_parameters() if not torch.equal(p, before[n])}
    assert "rebalancing.conv1.weight" in moved


def test_a_job_trains_and_its_features_are_those_of_both_branches(data, tmp_path):
    stage1 = train(data, tmp_path / "stage1")
    assert sorted(path.name for path in stage1.iterdir()) == ["history.csv", "model.safetensors"]
    history = pd.read_csv(stage1 / "history.csv")
    assert len(history) == 6
    assert history.loss.iloc[-1] < 0.8 * history.loss.iloc[0]
    subset = read_subset(data / "subset.h5")
    features = embed(tmp_path / "features", SPEC, stage1, data, seed=3)
    network = build_network(backbone_settings(SPEC), 10, 1)
    network.load_state_dict(load_file(stage1 / "model.safetensors"))
    for name in ("train", "test"):
        split = open_split(DIGITS, subset, name, CPU, None)
        order = torch.arange(len(split.labels))
        images = torch.cat(list(split.batches.epoch(order, 64, None))).float() / 255
        with torch.no_grad():
            plain = network.eval()((images - 0.3) / 0.4)
            wanted = network.features((images - 0.3) / 0.4)
        stored = FeatureStore.open(features / f"{name}.h5")
        assert stored.features.shape == (len(order), 128)
        np.testing.assert_allclose(stored.features, wanted, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(stored.logits, plain, rtol=1e-3, atol=1e-3)


def test_an_interrupted_job_goes_on_as_if_it_had_not_been(data, tmp_path, monkeypatch):
    unbroken = train(data, tmp_path / "unbroken", checkpoint_every=2)
    calls = []

    class Power(CrossEntropyLoss):
        def forward(self, logits, target):
            calls.append(1)
            if len(calls) == batches * 2 * 3 + 5:
                raise KeyboardInterrupt
            return super().forward(logits, target)

    samples = sum(read_subset(data / "subset.h5").class_counts)
    batches = -(-samples // SPEC["batch_size"])
    with monkeypatch.context() as patch:
        patch.setattr(bbn, "build_loss", lambda settings, counts: Power())
        with pytest.raises(KeyboardInterrupt):
            train(data, tmp_path / "broken", checkpoint_every=2)
    broken = tmp_path / "broken"
    assert [path.name for path in broken.iterdir()] == ["resume"]
    train(data, broken, checkpoint_every=2)
    assert (broken / "model.safetensors").read_bytes() == (
        unbroken / "model.safetensors"
    ).read_bytes()
    histories = [pd.read_csv(f / "history.csv").drop(columns="seconds") for f in (broken, unbroken)]
    pd.testing.assert_frame_equal(*histories)
    assert not (broken / "resume").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"network": "resnet8"}, "resnet8 has one branch"),
        ({"head": "cosine"}, "BBN's classifier is linear"),
        ({"loss": {"name": "ldam"}}, "takes cosines"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        BBN.model_validate({**SPEC, **settings})


def test_networks_of_two_branches_have_a_linear_head():
    with pytest.raises(InputError, match="linear head, not 'cosine'"):
        bbn_resnet8(3, head="cosine")


def test_a_short_last_batch_is_left_out_where_it_is_asked_for(training_set):
    """The released loader drops it; both streams then have equally many batches."""
    samples = len(training_set.labels)
    assert samples % 16
    for drop_last, expected in ((False, -(-samples // 16)), (True, samples // 16)):
        task = task_of(training_set, drop_last=drop_last)
        sizes = []
        forward = task.forward
        task.forward = lambda images, *rest, f=forward, s=sizes: (
            s.append(len(images)) or f(images, *rest)
        )
        task.run_epoch(0, 0.0)
        assert len(sizes) == expected
        assert (min(sizes) == 16) is drop_last


def test_drop_last_must_leave_a_batch(data, tmp_path):
    spec = {**SPEC, "batch_size": 4096, "drop_last": True}
    job = Job(
        {"kind": "stage1", "dataset": DIGITS, "backbone": spec, "seed": 0},
        {"data": data},
        tmp_path,
        CPU,
    )
    with pytest.raises(InputError, match="take a smaller batch_size"):
        bbn.run(job)
