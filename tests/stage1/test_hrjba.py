"""The branches of the hybrid network, against one joint loop over both."""

from __future__ import annotations

import copy

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from ltpipe.artifacts.job import Job
from ltpipe.config.backbones import HybridBranch, backbone_settings
from ltpipe.data.head_tail import group_classes
from ltpipe.data.sampling import epoch_order
from ltpipe.features.store import FeatureStore
from ltpipe.losses.softmax import CrossEntropyLoss
from ltpipe.models.resnet import resnet8
from ltpipe.stage1 import hrjba
from ltpipe.stage1.hrjba import BranchTask
from ltpipe.utils.errors import InputError
from ltpipe.utils.seeding import generator
from tests import support
from tests.support import CE, CPU, DIGITS, draw, embed

SPEC = {**CE, "system": "hrjba-branch", "group": "head", "epochs": 3}
RATE = 0.05


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return draw(tmp_path_factory.mktemp("hrjba"))


@pytest.fixture(scope="module")
def training_set(data):
    return support.training_set(data)


def classes_of(training_set, group, share=0.6):
    return group_classes(training_set.class_counts, share, group)


def fresh(training_set, group, attention=None):
    torch.manual_seed(5)
    return resnet8(len(classes_of(training_set, group)), in_channels=1, attention=attention)


def task_of(training_set, network, group, **settings):
    values = HybridBranch.model_validate({**SPEC, "group": group, **settings})
    classes = classes_of(training_set, group)
    return BranchTask(network, CrossEntropyLoss(), training_set, values, 7, CPU, classes)


def joint(training_set, head, tail, head_weight, epochs, batch_size):
    """Train both networks in one loop under the fused loss, by torch's own optimizer."""
    groups = {group: classes_of(training_set, group) for group in ("head", "tail")}
    networks = {"head": head.train(), "tail": tail.train()}
    optimizer = torch.optim.SGD(
        [*head.parameters(), *tail.parameters()], RATE, momentum=0.9, weight_decay=2e-4
    )
    shares = {"head": head_weight, "tail": 1 - head_weight}
    for epoch in range(epochs):
        order = epoch_order(training_set.labels, 10, "shuffle", generator(7, "order", epoch))
        stream = generator(7, "augment", epoch)
        for images, target in training_set.labelled(order, batch_size, stream, CPU):
            loss = 0
            for group, classes in groups.items():
                places = [i for i, y in enumerate(target.tolist()) if y in classes]
                if len(places) < 2:
                    continue
                local = torch.tensor([classes.index(int(target[i])) for i in places])
                logits = networks[group](images[places])
                loss = loss + shares[group] * F.cross_entropy(logits, local)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()


@pytest.mark.parametrize("batch_size", [16, 4])
def test_two_branches_are_one_joint_training(training_set, batch_size):
    head, tail = fresh(training_set, "head"), fresh(training_set, "tail", "simam")
    together = copy.deepcopy(head), copy.deepcopy(tail)
    # Batches of four often lack the tail: the joint loop then leaves that network alone, too.
    joint(training_set, *together, 0.7, 2, batch_size)
    for group, network, expected in zip(("head", "tail"), (head, tail), together, strict=True):
        task = task_of(
            training_set, network, group, head_weight=0.7, batch_size=batch_size, weight_decay=2e-4
        )
        for epoch in range(2):
            task.run_epoch(epoch, RATE)
        for name, value in expected.state_dict().items():
            torch.testing.assert_close(
                network.state_dict()[name], value, rtol=1e-4, atol=1e-5, msg=f"{group} {name}"
            )


def test_sums_are_of_the_groups_samples_alone(training_set):
    task = task_of(training_set, fresh(training_set, "tail"), "tail", batch_size=400)
    expected = copy.deepcopy(task.network).train()
    total, correct = task.run_epoch(0, 0.0)
    classes = classes_of(training_set, "tail")
    order = epoch_order(training_set.labels, 10, "shuffle", generator(7, "order", 0))
    ((images, target),) = training_set.labelled(order, 400, generator(7, "augment", 0), CPU)
    places = [i for i, y in enumerate(target.tolist()) if y in classes]
    local = torch.tensor([classes.index(int(target[i])) for i in places])
    logits = expected(images[places])
    assert total == pytest.approx(float(F.cross_entropy(logits, local)) * len(places), rel=1e-4)
    assert correct == int((logits.argmax(1) == local).sum())


def test_deferred_weights_count_within_the_group(training_set):
    rule = {"name": "drw", "start": 1}
    task = task_of(training_set, fresh(training_set, "tail"), "tail", rule=rule)
    assert task.phases[0].weights is None
    counts = np.array([training_set.class_counts[c] for c in classes_of(training_set, "tail")])
    inverse = 1 / counts
    np.testing.assert_allclose(task.phases[1].weights, inverse / inverse.mean(), rtol=1e-6)


@pytest.mark.parametrize("group", ["head", "tail"])
def test_a_job_leaves_a_branch_and_features_of_all_samples(data, tmp_path, group):
    backbone = {**SPEC, "group": group}
    spec = {"kind": "stage1", "dataset": DIGITS, "backbone": backbone, "seed": 3}
    (tmp_path / "stage1").mkdir()
    facts = hrjba.run(Job(spec, {"data": data}, tmp_path / "stage1", CPU))
    history = pd.read_csv(tmp_path / "stage1/history.csv")
    assert history["loss"].iloc[-1] < history["loss"].iloc[0]
    embed(tmp_path / "features", backbone, tmp_path / "stage1", data)
    store = FeatureStore.open(tmp_path / "features/train.h5")
    classes = group_classes(store.class_counts, 0.6, group)
    assert facts["group_classes"] == classes
    assert list(store.attributes["classes"]) == classes
    assert set(store.labels.tolist()) == set(range(10))
    assert store.logits.shape == (len(store.labels), len(classes))
    weight = load_file(tmp_path / "stage1/model.safetensors")["head.weight"]
    assert weight.shape == (len(classes), 64)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rule": {"name": "rs"}}, "same plain batches"),
        ({"network": "bbn-resnet8"}, "two branches"),
        ({"group": "middle"}, "group"),
        ({"loss": {"name": "ldam"}}, "head: cosine"),
    ],
)
def test_settings_that_cannot_be_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        backbone_settings({**SPEC, **change})


def test_several_processes_are_refused(monkeypatch, data, tmp_path):
    monkeypatch.setattr(hrjba.distributed, "size", lambda: 2)
    with pytest.raises(InputError, match="one process"):
        hrjba.run(Job({"backbone": SPEC}, {"data": data}, tmp_path, CPU))
