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
from ltpipe.config.experiment import find_catalogue, read_yaml, resolve
from ltpipe.features.store import FeatureStore, write_features
from ltpipe.losses.base import SoftmaxForm
from ltpipe.stage2.core.batches import Draws
from ltpipe.stage2.core.filters import flow_of, write_blocks
from ltpipe.stage2.core.fit import Recipe
from ltpipe.stage2.core.logit_gradients import SoftmaxGradient
from ltpipe.stage2.core.settings import FlowFilter
from ltpipe.stage2.dlsa import embedded
from ltpipe.stage2.dlsa import filter as flow_filter
from ltpipe.stage2.dlsa import job as dlsa
from ltpipe.stage2.dlsa.cosine_parts import CosinePartsModel, cosine_part_logits
from ltpipe.stage2.dlsa.embedded import GroupData, fit_group, group_logits
from ltpipe.stage2.dlsa.settings import DLSA
from ltpipe.testing import check_method
from ltpipe.utils.errors import InputError
from tests.support import CPU
from tests.workflow.workspace import REPOSITORY

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
        {"use_latent": False, "prior": "all", "best_test": True, "form": "released"},
        {"form": "released", "classifier": "cosine", "initial": "backbone"},
        {"initial": "backbone"},
        {"filter": {**SMALL, "batch_norm": False, "purity_clamp": None, "grad_clip": 5.0}},
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
    assert blocks["separation"].item() > 0.9
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


@pytest.mark.heavy
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


FRESH = np.random.default_rng(3)


def group(classes=6, dimension=5, parts=1, number=50):
    """A group of `number` features, lifted by made latent vectors and class shares."""
    labels = torch.from_numpy(FRESH.integers(0, classes, number))
    x = torch.from_numpy(FRESH.normal(size=(number, dimension)).astype(np.float32))
    extra = {1: 0, 2: dimension, 3: dimension + classes}[parts]
    more = torch.from_numpy(FRESH.normal(size=(number, extra)).astype(np.float32))
    counts = torch.bincount(labels, minlength=classes)

    def lift(rows):
        places = (rows.unsqueeze(1) == x.unsqueeze(0)).all(2).int().argmax(1)
        return torch.cat([rows, more[places]], 1)

    return x, labels, lift, counts


def data_of(made, sizes):
    x, labels, lift, counts = made
    return GroupData("block1", x, labels, lift, sizes, counts)


def store_with_classifier(folder, classes=6, dimension=5):
    weight, bias = FRESH.normal(size=(classes, dimension)), FRESH.normal(size=classes)
    write_features(
        folder / "train.h5",
        features=FRESH.normal(size=(12, dimension)).astype(np.float32),
        labels=np.arange(12) % classes,
        class_names=list("abcdef"),
        class_counts=[2] * classes,
        classifier_weight=weight.astype(np.float32),
        classifier_bias=bias.astype(np.float32),
    )
    return FeatureStore.open(folder / "train.h5")


@pytest.mark.parametrize("classifier", CLASSIFIERS)
@pytest.mark.parametrize("sizes", [[5], [5, 5], [10], [5, 11], [10, 6]])
def test_every_classifier_starts_from_the_backbones(classifier, sizes, tmp_path):
    """A rate of nothing leaves what it started from: of the feature, stage one's classifier."""
    backbone = store_with_classifier(tmp_path)
    data = data_of(group(parts={5: 1, 10: 2, 16: 3}[sum(sizes)]), sizes)
    recipe = Recipe(1, 64, 1e-12, "constant", 0.0, 0.0)
    fitted = fit_group(data, backbone, classifier, recipe, 0, CPU, initial="backbone")
    own = torch.from_numpy(backbone.classifier_weight)
    of_features = fitted["weight"][:, :, :5].mean(0)
    torch.testing.assert_close(of_features, own, rtol=1e-5, atol=1e-6)
    # The rest of it is drawn, and so is what starts at random.
    assert not torch.isclose(fitted["weight"].mean(0)[:, 5:], torch.zeros(())).any()
    fresh = fit_group(data, backbone, classifier, recipe, 0, CPU, initial="random")
    assert (fresh["weight"].mean(0)[:, :5] - own).abs().mean() > 0.1
    if classifier != "cosine" and len(sizes) == 1:
        bias = torch.from_numpy(backbone.classifier_bias)
        torch.testing.assert_close(fitted["bias"].mean(0), bias, rtol=1e-5, atol=1e-6)
    if sizes == [5]:
        x = data.features.double().numpy()
        weight = own.double().numpy()
        if classifier == "cosine":
            lengths = np.linalg.norm(x, axis=1, keepdims=True)
            weight = weight / np.linalg.norm(weight, axis=1, keepdims=True)
            expected = 16 * (x / (1 + lengths)) @ weight.T
        else:
            expected = x @ weight.T + backbone.classifier_bias
        found = group_logits(classifier, fitted, data.features, sizes)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("initial", ["random", "backbone"])
@pytest.mark.parametrize("sizes", [[5], [5, 11]])
def test_experts_start_and_stay_apart(sizes, initial, tmp_path):
    backbone = store_with_classifier(tmp_path)
    data = data_of(group(parts=3 if len(sizes) == 2 else 1), sizes)
    start = embedded._start(data, backbone, "ride", initial, 0, CPU)
    recipe = Recipe(20, 16, 0.1, "constant", 0.9, 0.0)
    fitted = fit_group(data, backbone, "ride", recipe, 0, CPU, initial=initial)
    for weights in (start, fitted):
        one, two = weights["weight"]
        assert (one - two)[:, :5].abs().mean() > 0.05
        assert (weights["bias"][0] - weights["bias"][1]).abs().mean() > 0.01


def independent_logits(cosine, layers, parts):
    """The sum of the parts' layers: linear ones, or cosines with squashed inputs, times 16."""
    total = 0
    for layer, x in zip(layers, parts, strict=True):
        if cosine:
            lengths = x.norm(dim=1, keepdim=True)
            directions = layer.weight / layer.weight.norm(dim=1, keepdim=True)
            total = total + 16 * (lengths / (1 + lengths) * (x / lengths)) @ directions.t()
        else:
            total = total + layer(x)
    return total


@pytest.mark.parametrize("classifier", ["cosine", "balanced-softmax"])
@pytest.mark.parametrize("form", ["paper", "released"])
@pytest.mark.parametrize("last", [False, True])
def test_forms_train_as_layers_of_their_own_do(classifier, form, last, tmp_path):
    """From copied weights on equal batches: the released code's FC[x] + FC[z, P], and the paper's.

    Layers are torch's, each with its bias, and so is the optimiser.
    """
    cosine = classifier == "cosine"
    flow = torch.nn.Identity()
    prior = None if last else torch.zeros(4, 6)
    sizes = dlsa.Lift(flow, prior, form=form).sizes(5)
    assert (
        sizes
        == {
            ("paper", False): [10, 6],
            ("paper", True): [10],
            ("released", False): [5, 11],
            ("released", True): [5, 5],
        }[form, last]
    )
    made = group(parts=2 if last else 3)
    data = data_of(made, sizes)
    backbone = store_with_classifier(tmp_path)
    recipe = Recipe(4, 16, 0.05, "constant", 0.9, 1e-3)
    start = embedded._start(data, backbone, classifier, "backbone", 0, CPU)
    layers = []
    for number, weight in enumerate(start["weight"][0].double().split(sizes, 1)):
        layer = torch.nn.Linear(weight.shape[1], 6, bias=not cosine).double()
        layer.weight.data.copy_(weight)
        if not cosine:
            # Only the sum of biases shows: how it is shared out between them does not.
            share = torch.zeros(6) if number else start["bias"][0]
            layer.bias.data.copy_(share)
        layers.append(layer)
    parameters = [value for layer in layers for value in layer.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=1e-3)
    prior_log = data.counts.double().clamp_min(1e-6).log()
    draws = Draws(data.labels, 1, 0, classes=6, sampler="shuffle")
    for epoch in range(4):
        rows, _ = draws.epoch(epoch)
        for batch in rows.split(16):
            parts = data.lift(data.features[batch]).double().split(sizes, 1)
            logits = independent_logits(cosine, layers, parts)
            logits = logits if cosine else logits + prior_log
            optimizer.zero_grad()
            F.cross_entropy(logits, data.labels[batch]).backward()
            optimizer.step()
    fitted = fit_group(data, backbone, classifier, recipe, 0, CPU, initial="backbone")
    joined = torch.cat([layer.weight.data for layer in layers], 1)
    torch.testing.assert_close(fitted["weight"][0].double(), joined, rtol=1e-4, atol=1e-5)
    inputs = data.lift(data.features)
    expected = independent_logits(cosine, layers, inputs.double().split(sizes, 1)).detach()
    found = group_logits(classifier, fitted, inputs, sizes).double()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def independent_flow(state, masks, x):
    """Log densities (B, K) under a flow's clusters, from its state dict, a formula at a time."""
    log_det = 0
    for layer in (0, 1):
        x = x.flip(1) if layer else x
        hidden = x
        for place in range(3):
            name = f"mades.{layer}.layers.{place}"
            hidden = hidden @ (state[f"{name}.weight"] * masks[layer, place]).t()
            hidden = hidden + state[f"{name}.bias"]
            hidden = hidden.clamp(min=0) if place < 2 else hidden
        shift, log_scale = hidden[:, 0::2], hidden[:, 1::2]
        x = (x - shift) / log_scale.exp()
        mean = x.mean(0)
        variance = ((x - mean) ** 2).sum(0) / (len(x) - 1)
        gamma, beta = state[f"norms.{layer}.log_gamma"], state[f"norms.{layer}.beta"]
        x = gamma.exp() * (x - mean) / (variance + 1e-5).sqrt() + beta
        log_det = log_det - log_scale.sum(1) + (gamma - (variance + 1e-5).log() / 2).sum()
    squares = ((x.unsqueeze(1) - state["centres"].unsqueeze(0)) ** 2).sum(2)
    return -(squares + x.shape[1] * np.log(2 * np.pi)) / 2 + log_det.unsqueeze(1)


@pytest.mark.parametrize(("clamp", "agrees"), [(None, True), (1e-3, False)])
def test_sixty_unclamped_steps_lead_to_the_released_losses_clusters(clamp, agrees, monkeypatch):
    """Copied weights, equal batches, torch's SGD: every sample falls into the same cluster."""
    stream = np.random.default_rng(5)
    labels = torch.from_numpy(np.repeat(np.arange(6), COUNTS))
    centres = 3 * stream.normal(size=(6, 8))
    features = torch.from_numpy(centres[labels] + 0.7 * stream.normal(size=(len(labels), 8)))
    settings = FlowFilter(
        clusters=20,
        epochs=20,
        batch_size=64,
        learning_rate=0.1,
        likelihood_weight=0.02,
        purity_weight=0.5,
        purity_clamp=clamp,
        spread=1.0,
    )
    flow = flow_filter.new_flow(settings, 8, seed=0, block=1).double()
    masks = {
        (layer, place): flow.mades[layer].layers[place].mask.double()
        for layer in (0, 1)
        for place in range(3)
    }
    state = {name: value.detach().clone() for name, value in flow.state_dict().items()}
    drawn = []
    original = flow_filter._draw

    def noted(*arguments):
        drawn.append(original(*arguments))
        return drawn[-1]

    monkeypatch.setattr(flow_filter, "_draw", noted)
    flow_filter.train_flow(flow, features, labels, 6, settings, seed=0, block=1)

    trained = [name for name, _ in flow.named_parameters()]
    for name in trained:
        state[name].requires_grad_()
    optimizer = torch.optim.SGD([state[name] for name in trained], lr=0.1)
    counts = np.array(COUNTS, dtype=float)
    omega = torch.from_numpy(counts**-2 / (counts**-2).sum())
    average, steps = torch.zeros(20, dtype=torch.float64), 0
    for first, second in drawn:
        for one, two in zip(first.split(64), second.split(64), strict=True):
            of_one = independent_flow(state, masks, features[one])
            of_two = independent_flow(state, masks, features[two])
            likelihood = of_one.exp().mean(1).log()
            loss = -0.02 * 2048 / 8 * (omega[labels[one]] * likelihood).mean()
            target = torch.softmax(of_one.detach(), 1)
            loss = loss + 0.5 * (target * torch.log_softmax(of_two, 1)).sum(1).mean()
            mean = 0.7 * average + 0.3 * torch.softmax(of_one, 1).mean(0)
            average, steps = mean.detach(), steps + 1
            p = mean / (1 - 0.7**steps)
            loss = loss + (p * (p + 1e-7).log()).sum() + np.log(20)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert steps == 60
    flow.train()
    ours = flow(features).cluster_log_prob.argmax(1)
    theirs = independent_flow(state, masks, features).argmax(1)
    assert torch.equal(ours, theirs) == agrees


def test_a_diverging_flow_is_one_error(tmp_path):
    folder = store(tmp_path, 0)
    with pytest.raises(InputError, match=r"165 samples the rarest class has 12: set filter\.grad"):
        filtered(folder, {**SMALL, "learning_rate": 1e6})


def test_a_block_with_one_sample_of_a_class_diverges_unless_gradients_are_clipped():
    """One sample has nearly all of the likelihood's weight, and its density has no bound."""
    stream = np.random.default_rng(1)
    labels = torch.tensor([0] * 86 + [1] * 57 + [2])
    features = torch.from_numpy(stream.normal(size=(144, 16)) * 0.5).float().clamp_min(0)
    settings = FlowFilter(
        clusters=20, epochs=60, batch_size=128, learning_rate=0.2, likelihood_weight=0.1
    )
    with pytest.raises(InputError, match=r"of its 144 samples the rarest class has 1: set filter"):
        flow = flow_filter.new_flow(settings, 16, seed=0, block=3)
        flow_filter.train_flow(flow, features, labels, 3, settings, seed=0, block=3)
    clipped = settings.model_copy(update={"grad_clip": 5.0})
    flow = flow_filter.new_flow(clipped, 16, seed=0, block=3)
    history = flow_filter.train_flow(flow, features, labels, 3, clipped, seed=0, block=3)
    assert np.isfinite([row["loss"] for row in history]).all()


def test_clipping_shortens_steps_to_the_norm_that_is_asked_for():
    labels = torch.tensor([0] * 20 + [1] * 20)
    features = torch.from_numpy(np.random.default_rng(0).normal(size=(40, 8))).float()
    moved = {}
    for clip in (None, 0.5, 0.25):
        settings = FlowFilter(
            clusters=4, epochs=1, batch_size=40, learning_rate=0.1, grad_clip=clip
        )
        flow = flow_filter.new_flow(settings, 8, seed=0, block=1)
        before = [value.detach().clone() for value in flow.parameters()]
        flow_filter.train_flow(flow, features, labels, 2, settings, seed=0, block=1)
        steps = [(a - b).detach() for a, b in zip(flow.parameters(), before, strict=True)]
        moved[clip] = float(sum(step.double().square().sum() for step in steps).sqrt())
    assert moved[None] > 0.1
    assert moved[0.5] == pytest.approx(0.05, rel=1e-3)
    assert moved[0.25] == pytest.approx(0.025, rel=1e-3)


def test_settings_are_the_released_ones():
    settings = FlowFilter()
    assert (settings.clusters, settings.share, settings.exponent) == (500, 0.3, 2.0)
    method = DLSA.model_validate({"kind": "dlsa", "backbones": {"features": "x"}})
    assert (method.blocks, method.epochs, method.batch_size) == (3, 150, 128)


@pytest.mark.parametrize("name", ["dlsa", "dlsa_released"])
def test_the_papers_experiments_have_its_filters_and_forms(name):
    read = read_yaml(REPOSITORY / f"config/experiments/{name}.yaml")
    experiment = resolve(read, find_catalogue(REPOSITORY / "config/config.yaml"))
    for method in experiment.methods.values():
        filters = method.settings.filter
        assert (filters.purity_clamp, filters.precision, filters.exponent) == (None, "fp32", 2)
        assert (filters.share, filters.grad_clip) == (0.3, None)
        assert method.settings.form == ("released" if name == "dlsa_released" else "paper")
        # PaCo's classifier is what its rows start from, cosines among them.
        on_paco = method.settings.backbones.features.startswith("PaCo")
        assert (method.settings.initial == "backbone") == on_paco


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
