"""The decoupled classifiers against lone models trained by torch, and against NumPy loops."""

from __future__ import annotations

import dataclasses
import json

import h5py
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from ltpipe.artifacts.job import Job
from ltpipe.config.registry import registered
from ltpipe.features.store import FeatureStore, write_features
from ltpipe.losses.building import build_loss
from ltpipe.losses.margin import LDAMLoss
from ltpipe.losses.reweight import FocalLoss
from ltpipe.losses.smoothing import LabelAwareSmoothingLoss
from ltpipe.losses.softmax import BalancedSoftmaxLoss, CrossEntropyLoss
from ltpipe.losses.weights import effective_number_weights
from ltpipe.stage2.core.base_classifier import backbone_head
from ltpipe.stage2.core.batches import Sampling, SquashedRows, UnitRows
from ltpipe.stage2.core.class_means import class_means, closeness
from ltpipe.stage2.core.classifiers import fit_classifiers, fit_scaled
from ltpipe.stage2.core.experts import DiversityGradient, fit_experts
from ltpipe.stage2.core.fit import Recipe
from ltpipe.stage2.core.heads import CosineModel, LinearModel, normalised
from ltpipe.stage2.core.logit_gradients import AutogradGradient, SoftmaxGradient, logit_gradient
from ltpipe.stage2.core.retraining import training_batches
from ltpipe.stage2.core.translation import TranslatedBatches, Translation, fit_translated
from ltpipe.stage2.simple import tau_norm
from ltpipe.stage2.simple.tau_norm import TauNorm
from ltpipe.testing import make_store
from ltpipe.utils.errors import InputError
from ltpipe.utils.seeding import generator
from tests.support import CPU

RATES = [0.002, 0.004, 0.006, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.07, 0.1]
ROLE = {"backbones": {"features": "features"}}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A backbone's training features."""
    base = tmp_path_factory.mktemp("store")
    make_store(base, 0)
    return FeatureStore.open(base / "train.h5")


COUNTS = [60, 28, 13, 6, 3]
RECIPE = Recipe(4, 16, 0.1, "cosine", 0.9, 5e-4)
SAMPLING = Sampling()


def classifiers(store, recipe, loss=None, sampling=SAMPLING, **values):
    loss = loss or CrossEntropyLoss()
    return fit_classifiers(store, loss, recipe, sampling, 4, CPU, **values)


def scaled(store, recipe, loss, trained):
    return fit_scaled(store, loss, recipe, SAMPLING, 4, CPU, initial="backbone", trained=trained)


def experts(store, recipe, loss, **values):
    """Two experts a sweep point."""
    gradient = DiversityGradient(loss, COUNTS, CPU, experts=2, reweight_from=2, **values)
    return fit_experts(store, gradient, recipe, SAMPLING, 4, CPU, cosine=loss.takes_cosines)


def weighted_focal():
    loss = FocalLoss()
    loss.reweight(effective_number_weights(COUNTS))
    return loss


# What fits one store's classifiers by a recipe, and how many models a sweep point consists of.
FITS = {
    "crt": (lambda s, r: classifiers(s, r, sampling=Sampling(per_class=4)), 1),
    "balanced softmax": (
        lambda s, r: classifiers(s, r, BalancedSoftmaxLoss(COUNTS), Sampling(sampler="shuffle")),
        1,
    ),
    "focal, weighted": (lambda s, r: classifiers(s, r, weighted_focal()), 1),
    "cosine": (lambda s, r: classifiers(s, r, cosine=True, rows=SquashedRows, scale=16.0), 1),
    "cosine ldam": (
        lambda s, r: classifiers(s, r, LDAMLoss(COUNTS), cosine=True, rows=UnitRows),
        1,
    ),
    "lws": (lambda s, r: scaled(s, r, CrossEntropyLoss(), ("scale",)), 1),
    "mislas": (
        lambda s, r: scaled(
            s,
            dataclasses.replace(r, factors={"weight": 0.2, "bias": 0.2}),
            LabelAwareSmoothingLoss(COUNTS),
            ("weight", "bias", "scale"),
        ),
        1,
    ),
    "m2m": (
        lambda s, r: fit_translated(s, Translation(), r, SAMPLING, 4, CPU, initial="backbone"),
        1,
    ),
    "ride": (lambda s, r: experts(s, r, LDAMLoss(COUNTS), scale=30.0), 2),
    "ride, linear": (lambda s, r: experts(s, r, CrossEntropyLoss()), 2),
}


@pytest.mark.parametrize("name", FITS)
def test_11_models_fitted_together_equal_lone_ones(store, name, double_precision):
    """In float64: a large product and a small one add in different orders on some processors."""
    store = double_precision(store)
    fit, parts = FITS[name]
    together = fit(store, dataclasses.replace(RECIPE, learning_rate=tuple(RATES)))
    for value in together.values():
        assert len(value) == 11 * parts
    for place, rate in enumerate(RATES):
        lone = fit(store, dataclasses.replace(RECIPE, learning_rate=rate))
        for key, value in lone.items():
            found = together[key][place * parts : (place + 1) * parts]
            assert value.dtype == torch.float64
            torch.testing.assert_close(found, value, rtol=1e-10, atol=1e-10)
    moved = {key for key, value in together.items() if not torch.equal(value[0], value[parts])}
    assert moved


def lone_by_torch(store, loss, head):
    """Train one linear or cosine classifier by torch's own layers, optimiser and autograd."""
    batches = training_batches(store, SAMPLING, RECIPE.batch_size, 0, CPU)
    draws = generator(0, "classifier")
    classes, dimension = len(store.class_names), store.features.shape[1]
    if head == "linear":
        bound = dimension**-0.5
        weight = ((torch.rand(classes, dimension, generator=draws) * 2 - 1) * bound).double()
        bias = ((torch.rand(classes, generator=draws) * 2 - 1) * bound).double()
        parameters = [weight.requires_grad_(), bias.requires_grad_()]
    else:
        weight = F.normalize(torch.rand(classes, dimension, generator=draws) * 2 - 1, dim=1)
        parameters = [weight.double().requires_grad_()]
    optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=5e-4)
    for epoch in range(RECIPE.epochs):
        cosine = 0.5 * (1 + np.cos(np.pi * epoch / RECIPE.epochs))
        optimizer.param_groups[0]["lr"] = 0.1 * cosine
        for inputs, target in batches(epoch):
            x = inputs[0].double()
            if head == "linear":
                logits = F.linear(x, *parameters)
            else:
                squashed = x / (1 + x.norm(dim=1, keepdim=True))
                logits = 16 * squashed @ F.normalize(parameters[0], dim=1).T
            optimizer.zero_grad()
            loss(logits, target[0]).backward()
            optimizer.step()
    return [parameter.detach() for parameter in parameters]


@pytest.mark.parametrize(
    ("head", "loss"),
    [
        ("linear", CrossEntropyLoss()),
        ("linear", BalancedSoftmaxLoss(COUNTS)),
        ("linear", LabelAwareSmoothingLoss(COUNTS)),
        ("cosine", CrossEntropyLoss()),
    ],
)
def test_a_classifier_equals_one_trained_by_torch(store, head, loss):
    extra = {"cosine": True, "rows": SquashedRows, "scale": 16.0} if head == "cosine" else {}
    found = fit_classifiers(store, loss, RECIPE, SAMPLING, 0, CPU, **extra)
    expected = lone_by_torch(store, loss, head)
    for name, value in zip(("weight", "bias"), expected, strict=False):
        torch.testing.assert_close(found[name][0].double(), value, rtol=1e-4, atol=1e-5)


def logits_and_target(dtype=torch.float64):
    draws = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 7, 3, 5, generator=draws, dtype=dtype)
    return logits, torch.randint(5, (2, 7), generator=draws)


@pytest.mark.parametrize("name", registered("loss"))
@pytest.mark.parametrize("weighted", [False, True])
def test_logit_gradients_are_those_of_the_loss(name, weighted):
    counts = [50, 20, 9, 4, 1]
    loss = build_loss(_NamedLoss(name), counts).double()
    if weighted:
        loss.reweight(torch.tensor([0.1, 0.3, 0.6, 1.5, 2.5], dtype=torch.float64))
    logits, target = logits_and_target()
    found = logit_gradient(loss, scale=1.7)(logits.clone(), target)
    for g in range(2):
        for p in range(3):
            leaf = logits[g, :, p].clone().requires_grad_()
            loss(1.7 * leaf, target[g]).backward()
            torch.testing.assert_close(found[g, :, p], leaf.grad, rtol=1e-6, atol=1e-9)


@dataclasses.dataclass
class _NamedLoss:
    name: str

    def model_dump(self, exclude):
        return {}


def test_softmax_losses_have_a_gradient_by_hand_and_others_by_autograd():
    by_hand = {"ce", "class-balanced", "balanced-softmax", "logit-adjustment", "ldam"}
    for name in registered("loss"):
        gradient = logit_gradient(build_loss(_NamedLoss(name), [5, 3, 1]))
        assert isinstance(gradient, SoftmaxGradient if name in by_hand else AutogradGradient)


@pytest.mark.parametrize("scaled", [False, True])
def test_a_linear_models_gradients_are_autograds(scaled):
    draws = torch.Generator().manual_seed(1)
    shapes = {"weight": (6, 5, 4), "bias": (6, 5)} | ({"scale": (6, 5)} if scaled else {})
    parameters = {
        name: torch.randn(shape, generator=draws, dtype=torch.float64)
        for name, shape in shapes.items()
    }
    inputs = torch.randn(2, 7, 4, generator=draws, dtype=torch.float64)
    target = torch.randint(5, (2, 7), generator=draws)
    model = LinearModel(logit_gradient(CrossEntropyLoss()), tuple(shapes))
    found = model.gradients(parameters, inputs, target)
    for m in range(6):
        leaves = {name: value[m].clone().requires_grad_() for name, value in parameters.items()}
        logits = F.linear(inputs[m // 3], leaves["weight"], leaves["bias"])
        logits = leaves["scale"] * logits if scaled else logits
        F.cross_entropy(logits, target[m // 3]).backward()
        for name, leaf in leaves.items():
            torch.testing.assert_close(found[name][m], leaf.grad)


def test_a_cosine_models_gradient_is_autograds():
    draws = torch.Generator().manual_seed(2)
    weight = torch.randn(4, 5, 3, generator=draws, dtype=torch.float64)
    inputs = torch.randn(2, 7, 3, generator=draws, dtype=torch.float64)
    target = torch.randint(5, (2, 7), generator=draws)
    model = CosineModel(logit_gradient(CrossEntropyLoss(), scale=9.0))
    found = model.gradients({"weight": weight}, inputs, target)["weight"]
    for m in range(4):
        leaf = weight[m].clone().requires_grad_()
        logits = 9 * inputs[m // 2] @ F.normalize(leaf, dim=1).T
        F.cross_entropy(logits, target[m // 2]).backward()
        torch.testing.assert_close(found[m], leaf.grad)


def test_nearest_class_means_by_loops():
    stream = np.random.default_rng(0)
    train, test = stream.normal(size=(20, 4)), stream.normal(size=(6, 4))
    labels = np.arange(20) % 3
    centre = train.mean(0)
    means = []
    for label in range(3):
        units = [(x - centre) / np.linalg.norm(x - centre) for x in train[labels == label]]
        means.append(sum(units) / len(units))
    expected = np.empty((6, 3))
    for i, x in enumerate(test):
        unit = (x - centre) / np.linalg.norm(x - centre)
        for c, mean in enumerate(means):
            expected[i, c] = -sum((unit - mean) ** 2)
    units = F.normalize(torch.from_numpy(train - centre), dim=1)
    found = class_means(units.float(), torch.from_numpy(labels), 3)
    np.testing.assert_allclose(found.numpy(), np.stack(means), atol=1e-6)
    measured = closeness(
        F.normalize(torch.from_numpy(test - centre), dim=1).float(), found, "euclidean"
    )
    np.testing.assert_allclose(measured.numpy(), expected, atol=1e-6)


def test_tau_normalised_rows_by_loops():
    weight = np.random.default_rng(1).normal(size=(4, 3))
    for tau in (0.0, 0.7, 2.0):
        found = normalised(torch.from_numpy(weight), tau).numpy()
        for row, expected in zip(found, weight, strict=True):
            np.testing.assert_allclose(row, expected / np.linalg.norm(expected) ** tau)
    assert TauNorm.model_validate({"kind": "tau-norm", **ROLE}).tau == [
        0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0,
        1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7, 1.8, 1.9, 2.0,
    ]  # fmt: skip


def test_tau_is_the_best_on_the_held_out_samples_of_the_tuning_backbone(tmp_path):
    for number, name in enumerate(("plain", "tuning")):
        make_store(tmp_path / name, number)
    method = {"kind": "tau-norm", "tau": [0.0, 1.0, 4.0, 12.0]}
    job = Job(
        spec={"method": method, "groups": "ranks", "seed": 0},
        inputs={"features.features": tmp_path / "plain", "tuning.features": tmp_path / "tuning"},
        output=tmp_path,
        device=CPU,
    )
    chosen = tau_norm.run(job)["chosen"]["tau"]
    weight = FeatureStore.open(tmp_path / "tuning/train.h5").classifier_weight
    held_out = FeatureStore.open(tmp_path / "tuning/val.h5")
    means = []
    for tau in method["tau"]:
        rows = [row / np.linalg.norm(row) ** tau for row in weight]
        hits = {label: [] for label in range(5)}
        for x, y in zip(held_out.features, held_out.labels, strict=True):
            hits[y].append(int(np.argmax([x @ row for row in rows])) == y)
        means.append(np.mean([np.mean(of_class) for of_class in hits.values()]))
    assert len(set(means)) > 1
    best = [tau for tau, mean in zip(method["tau"], means, strict=True) if mean == max(means)]
    assert chosen == best[len(best) // 2]


def test_tau_needs_held_out_samples(tmp_path):
    make_store(tmp_path, 0)
    with h5py.File(tmp_path / "test.h5") as test:
        names = json.loads(test.attrs["class_names"])
    write_features(
        tmp_path / "val.h5",
        features=np.empty((0, 8), np.float32),
        labels=np.empty(0, np.int64),
        class_names=names,
        class_counts=[1] * 5,
    )
    job = Job(
        spec={"method": {"kind": "tau-norm"}, "groups": "ranks", "seed": 0},
        inputs={"features.features": tmp_path},
        output=tmp_path,
        device=CPU,
    )
    with pytest.raises(InputError, match="select: none"):
        tau_norm.run(job)


def ride_loss(z, target, counts, late, diversity):
    """RIDE's loss of E experts' scaled logits z (E, B, C), in NumPy loops."""
    classes, size = len(counts), len(target)
    margins = 0.5 * np.array(counts, float) ** -0.25 / max(np.array(counts, float) ** -0.25)
    weights = np.array([(1 - 0.9999) / (1 - 0.9999**n) for n in counts])
    weights = weights / weights.sum() * classes if late else np.ones(classes)
    shares = np.array([classes * 0.05 * n / sum(counts) + 1 - 0.05 for n in counts])
    temperature = shares / shares.max() if late else np.ones(classes)

    def softmax(row):
        powers = np.exp(row - row.max())
        return powers / powers.sum()

    total = 0.0
    for expert in z:
        numerator = denominator = 0.0
        for row, y in zip(expert, target, strict=True):
            shifted = row.copy()
            shifted[y] -= 30 * margins[y]
            numerator += weights[y] * -np.log(softmax(shifted)[y])
            denominator += weights[y]
        total += numerator / denominator
        for i in range(size):
            mean = softmax(z[:, i].mean(0) / temperature)
            own = softmax(expert[i] / temperature)
            divergence = sum(mean[c] * np.log(mean[c] / own[c]) for c in range(classes))
            total += diversity * temperature.mean() ** 2 * divergence / size
    return total


@pytest.mark.parametrize("late", [False, True])
def test_rides_gradient_by_finite_differences_of_a_numpy_loop(late):
    counts = [40, 11, 3]
    gradient = DiversityGradient(
        LDAMLoss(counts), counts, CPU, experts=2, reweight_from=2, scale=30.0
    )
    gradient.on_epoch(2 if late else 1)
    draws = torch.Generator().manual_seed(3)
    cosines = torch.rand(1, 5, 2, 3, generator=draws) * 2 - 1
    target = torch.tensor([[0, 2, 1, 0, 2]])
    found = gradient(cosines.clone(), target)[0].numpy()
    z = 30 * cosines[0].permute(1, 0, 2).double().numpy()
    mean = z.mean(0, keepdims=True)
    step = 1e-5
    for b in range(5):
        for e in range(2):
            for c in range(3):
                # The mean is taken as given: it is moved back to what it was.
                values = []
                for sign in (1, -1):
                    moved = z.copy()
                    moved[e, b, c] += sign * step
                    values.append(_with_mean(moved, mean, target[0].numpy(), counts, late))
                slope = 30 * (values[0] - values[1]) / (2 * step)
                assert found[b, e, c] == pytest.approx(slope, rel=2e-3, abs=2e-4)


def _with_mean(z, mean, target, counts, late):
    """ride_loss with the experts' mean held fixed: a phantom expert set gives the mean."""
    plain = ride_loss(z, target, counts, late, 0.0)
    temperature = np.array([3 * 0.05 * n / sum(counts) + 0.95 for n in counts])
    temperature = temperature / temperature.max() if late else np.ones(3)
    divergence = 0.0
    for expert in z:
        for i, row in enumerate(expert):
            p = np.exp(mean[0, i] / temperature)
            q = np.exp(row / temperature)
            p, q = p / p.sum(), q / q.sum()
            divergence += float((p * np.log(p / q)).sum()) / len(target)
    return plain - 0.2 * temperature.mean() ** 2 * divergence


def test_the_two_numpy_readings_of_ride_agree():
    z = np.random.default_rng(5).normal(size=(2, 4, 3)) * 3
    target = np.array([0, 1, 2, 0])
    whole = ride_loss(z, target, [40, 11, 3], True, -0.2)
    assert whole == pytest.approx(
        _with_mean(z, z.mean(0, keepdims=True), target, [40, 11, 3], True)
    )


def translated(store, **values):
    batches = training_batches(store, SAMPLING, RECIPE.batch_size, 7, CPU)
    judge = backbone_head(store)
    norm = float(np.linalg.norm(store.features, axis=1).mean())
    made = TranslatedBatches(
        batches,
        judge["weight"][None],
        judge,
        torch.tensor(store.class_counts),
        norm,
        Translation(**values),
        7,
        non_negative=False,
    )
    return batches, made, norm


def test_m2m_makes_samples_of_rare_classes_only_and_its_judge_is_sure_of_them(store):
    batches, made, _ = translated(store, confidence=0.8)
    changed = np.zeros(5)
    seen = np.zeros(5)
    for epoch in range(20):
        for (plain, target), (inputs, labels) in zip(batches(epoch), made(epoch), strict=True):
            assert torch.equal(target, labels)
            different = (plain != inputs).any(2)[0]
            for i in torch.arange(len(different)):
                seen[target[0, i]] += 1
                changed[target[0, i]] += bool(different[i])
            probabilities = torch.softmax(
                inputs[0] @ torch.from_numpy(store.classifier_weight).T, dim=1
            )
            sure = probabilities.gather(1, labels[0][:, None])[:, 0]
            assert (sure[different] >= 0.8 - 1e-5).all()
    share = changed / seen
    # The largest class is never made; the others the more the rarer, up to 1 - beta ** excess.
    assert share[0] == 0
    assert share[4] > 0.01
    largest, n = store.class_counts[0], np.array(store.class_counts)
    bound = (1 - n / largest) * (1 - 0.999 ** (largest - n))
    assert (share <= bound + 4 * np.sqrt(bound / seen) + 1e-9).all()


def test_m2ms_steps_by_loops(store):
    _, made, norm = translated(store, steps=3, noise=0.5, penalty=0.5)
    stream = np.random.default_rng(3)
    features = torch.from_numpy(stream.normal(size=(1, 2, 8))).float()
    noise = torch.from_numpy(stream.normal(size=(1, 2, 8))).float()
    labels, sources = torch.tensor([[3, 4]]), torch.tensor([[0, 1]])
    found = made._translate(features, noise[0], labels, sources[0])[0].numpy()
    weight = store.classifier_weight.astype(float)
    for i in range(2):
        x = features[0, i].double().numpy()
        direction = noise[0, i].double().numpy()
        x = x + 0.5 * 0.1 * norm * direction / np.linalg.norm(direction)
        for _ in range(3):
            z = weight @ x
            p = np.exp(z - z.max())
            p /= p.sum()
            p[labels[0, i]] -= 1
            slope = p @ weight + 0.5 * weight[sources[0, i]]
            x = x - 0.1 * norm * slope / np.linalg.norm(slope)
        np.testing.assert_allclose(found[i], x, rtol=1e-4, atol=1e-5)


def test_stores_without_a_classifier_or_views_are_refused(store):
    bare = dataclasses.replace(store, classifier_weight=None, classifier_bias=None, views=None)
    for name in ("lws", "mislas", "m2m"):
        with pytest.raises(InputError, match="carries no stage-one classifier"):
            FITS[name][0](bare, RECIPE)
    with pytest.raises(InputError, match="no augmented views are cached"):
        classifiers(bare, RECIPE)
    plain = classifiers(bare, RECIPE, sampling=Sampling("plain"))
    assert torch.isfinite(plain["weight"]).all()
