"""ECVL's phase II: adapter, gradients, strengths, sampling, sweeps, and what online changes."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from ltpipe.artifacts.job import Job
from ltpipe.config.experiment import find_catalogue, read_yaml, resolve
from ltpipe.features.store import FeatureStore, write_features
from ltpipe.stage1 import vision_language
from ltpipe.stage2.core.results import read_predictions
from ltpipe.stage2.core.texts import class_texts
from ltpipe.stage2.ecvl import job as ecvl
from ltpipe.stage2.ecvl.adapter import Adapter, adapt
from ltpipe.stage2.ecvl.cached_views import CachedViews
from ltpipe.stage2.ecvl.losses import text_gradient
from ltpipe.stage2.ecvl.memory import memory_order
from ltpipe.stage2.ecvl.settings import ECVL
from ltpipe.stage2.simple import zero_shot
from ltpipe.testing import check_method, make_store
from ltpipe.utils.errors import InputError
from ltpipe.utils.seeding import generator
from tests.support import CPU, DIGITS, draw, embed, run_job
from tests.workflow.workspace import REPOSITORY


def settings_of(**values):
    return ECVL.model_validate({"kind": "ecvl", "backbones": {"features": "features"}, **values})


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stores")
    make_store(folder, 0)
    return folder


@pytest.fixture(scope="module")
def store(stores):
    return FeatureStore.open(stores / "train.h5")


def run(module, stores, output, seed=0, **method):
    output.mkdir(parents=True)
    kind = "zero-shot" if module is zero_shot else "ecvl"
    spec = {"kind": "stage2", "method": {"kind": kind, **method}, "groups": "ranks", "seed": seed}
    facts = module.run(Job(spec, {"features.features": stores}, output, CPU))
    return facts, read_predictions(output), load_file(output / "models.safetensors")


def phase2_of(store, seed=0, **values):
    settings = settings_of(**values)
    plain = settings.views == "plain"
    source = CachedViews(
        store, CPU, plain=plain, by_strength=settings.randaugment, pairs=settings.needs_pairs()
    )
    return ecvl.prepare(settings, store, source, seed, CPU)


def adapted_by(adapter, place, features):
    bias = None if adapter.bias is None else adapter.bias[place]
    return adapt(features, adapter.weight[place], bias, adapter.share[place], adapter.relu)


def test_without_a_share_the_adapter_is_the_identity(stores, tmp_path):
    """With lambda = 0 ECVL is zero-shot classification, to the bit."""
    _, adapted, weights = run(
        ecvl, stores, tmp_path / "a", adapter={"lambda": 0.0}, batch_size=16, epochs=3
    )
    _, plain, _ = run(zero_shot, stores, tmp_path / "b")
    assert np.array_equal(adapted.scores, plain.scores)
    assert weights["share"].tolist() == [0.0]
    features = torch.randn(2, 7, 8)
    adapter = Adapter(8, [0.0], 0, CPU)
    assert torch.equal(adapted_by(adapter, 0, features[0]), features[0])
    torch.testing.assert_close(adapter.units(features[:1]).units, F.normalize(features[:1], dim=2))


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_eq_7_in_numpy(relu, bias):
    adapter = Adapter(8, [0.2, 0.7], 3, CPU, relu=relu, bias=bias)
    features = torch.randn(5, 8, generator=generator(0, "f"))
    assert (adapter.bias is None) == (not bias)
    for place, share in enumerate((0.2, 0.7)):
        weight = adapter.weight[place].detach().double().numpy()
        hidden = features.double().numpy() @ weight.T
        if bias:
            hidden += adapter.bias[place].detach().double().numpy()
        if relu:
            hidden = np.maximum(hidden, 0)
        expected = share * hidden + (1 - share) * features.double().numpy()
        found = adapted_by(adapter, place, features)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
        units = adapter.units(features.expand(2, -1, -1)).units[place]
        norms = np.linalg.norm(expected, axis=1, keepdims=True)
        np.testing.assert_allclose(units, expected / norms, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"adapter": {"relu": False, "bias": False}, "momentum": False, "randaugment": False},
        {"randaugment": False, "mu": [0.3, 2.0], "temperature": 0.5},
        {"momentum": False, "adapter": {"lambda": [0.1, 0.9]}},
    ],
)
def test_a_step_follows_autograds_gradient(store, values):
    """The step's gradient by hand against a plain forward pass of eqs. 6, 7 and 11."""
    fit, settings = phase2_of(store, learning_rate=0.1, **values), settings_of(**values)
    points = fit.points
    stream = generator(5, "batch")
    index = torch.randint(len(store.labels), (points, 12), generator=stream)
    target = fit.samples.labels[index]
    features = torch.randn(points, fit.views, 12, 8, generator=stream)
    adapter = fit.adapter
    leaves = {"weight": adapter.weight.detach().clone().requires_grad_()}
    if adapter.bias is not None:
        leaves["bias"] = adapter.bias.detach().clone().requires_grad_()
    total = 0.0
    for place, point in enumerate(settings.points()):
        views = []
        for view in features[place]:
            hidden = view @ leaves["weight"][place].T
            hidden = hidden + leaves["bias"][place] if "bias" in leaves else hidden
            hidden = hidden.relu() if settings.adapter.relu else hidden
            share = adapter.share[place].item()
            views.append(F.normalize(share * hidden + (1 - share) * view, dim=1))
        cosines = views[0] @ fit.texts.units.T
        total = total + F.cross_entropy(fit.texts.scale * cosines, target[place])
        if settings.momentum:
            both = torch.cat(views)
            images = torch.cat([index[place], index[place]])
            partner = torch.arange(24).roll(12)
            same = (images[:, None] == images) & ~F.one_hot(partner, 24).bool()
            logits = (both @ both.T / settings.temperature).masked_fill(same, -torch.inf)
            mu = point.get("mu", settings.mu)
            total = total + mu * F.cross_entropy(logits, partner)
    total.backward()
    seen = {}
    fit.optimizer.step = lambda rate: seen.update(
        weight=adapter.weight.grad, bias=None if adapter.bias is None else adapter.bias.grad
    )
    fit._step(index, target, features, 0.1)
    for name, leaf in leaves.items():
        torch.testing.assert_close(seen[name], leaf.grad, rtol=1e-4, atol=1e-6)


def test_the_text_gradient_against_a_loop():
    stream = np.random.default_rng(0)
    units, text = stream.normal(size=(1, 6, 4)), stream.normal(size=(3, 4))
    target = np.array([[0, 2, 1, 1, 0, 2]])
    expected = np.zeros_like(units)
    for i in range(6):
        exponents = np.exp(7 * text @ units[0, i])
        shares = exponents / exponents.sum()
        for k in range(3):
            expected[0, i] += 7 * (shares[k] - (k == target[0, i])) * text[k] / 6
    arguments = (torch.from_numpy(value) for value in (units, text, target))
    np.testing.assert_allclose(text_gradient(*arguments, 7.0), expected, atol=1e-12)


def test_models_fitted_together_are_those_alone(store):
    values = {"epochs": 4, "batch_size": 16}
    sweep = {"mu": [0.5, 2.0], "adapter": {"lambda": [0.2, 0.6]}}
    both = phase2_of(store, **sweep, **values)
    both.run()
    for place, point in enumerate(settings_of(**sweep).points()):
        alone = phase2_of(store, mu=point["mu"], adapter={"lambda": point["lambda"]}, **values)
        alone.run()
        torch.testing.assert_close(
            both.adapter.weight[place], alone.adapter.weight[0], rtol=1e-3, atol=1e-5
        )
        torch.testing.assert_close(
            both.memory.values()[place], alone.memory.values()[0], rtol=1e-3, atol=1e-4
        )


def test_off_switches_leave_balladas_one_view(store):
    fit = phase2_of(store, momentum=False, randaugment=False)
    assert fit.views == 1
    assert fit.memory is None
    with pytest.raises(ValueError, match="mu weighs the loss"):
        settings_of(momentum=False, mu=0.5)


def test_randaugment_alone_measures_the_contrast_and_does_not_train_on_it(store):
    fit = phase2_of(store, momentum=False, epochs=2, batch_size=16)
    assert fit.mu.item() == 0
    fit.run()
    assert fit.memory.known.any()


def test_the_first_epoch_has_standard_views_and_later_ones_stronger_ones(store):
    seen = []
    fit = phase2_of(store, epochs=3, batch_size=16)
    epoch = fit.source.epoch

    def spy(order, memory, *arguments):
        seen.append(fit.source.nearest(memory))
        return epoch(order, memory, *arguments)

    fit.source.epoch = spy
    fit.run()
    assert (seen[0] == 0).all()
    assert (seen[1] > 0).any()


def test_images_of_a_class_take_turns_over_epochs(store):
    fit = phase2_of(store, sampler="cycle", per_class=1)
    labels = fit.samples.labels
    drawn = torch.cat([fit._order(epoch, None)[0] for epoch in range(3)])
    for label in range(fit.samples.classes):
        hits = torch.bincount(drawn, minlength=len(labels))[labels == label]
        assert hits.max() - hits.min() <= 1


def catalogue_entry(name):
    return (
        resolve(
            {
                "experiment": "entries",
                "datasets": {"digits-lt": None},
                "backbones": {"towers": {"use": "small-towers"}},
                "methods": {"m": {"use": name, "backbones": {"features": "towers"}}},
            },
            find_catalogue(REPOSITORY / "config/config.yaml"),
        )
        .methods["m"]
        .settings
    )


def test_the_papers_phase_two_is_an_entry():
    """AdamW, 300 epochs and eq. 12's draws, as the text states; the adapter with eq. 7's ReLU."""
    paper = catalogue_entry("ecvl-paper")
    assert (paper.optimizer, paper.epochs, paper.sampler) == ("adamw", 300, "balanced")
    assert paper.momentum
    assert paper.randaugment
    assert paper.adapter.relu
    assert paper.adapter.bias


def test_rows_beside_ecvls_published_numbers_have_its_recipe():
    read = read_yaml(REPOSITORY / "config/experiments/ecvl.yaml")
    experiment = resolve(read, find_catalogue(REPOSITORY / "config/config.yaml"))
    found = {
        row.method
        for table in experiment.file.tables.values()
        for row in table.rows
        if str(row.paper_method).startswith("ECVL")
    }
    assert len(found) == 6
    for name in found:
        settings = experiment.methods[name].settings
        assert (settings.optimizer, settings.epochs) == ("adamw", 300)


@pytest.mark.parametrize("entry", ["ballad", "ecvl", "ecvl-momentum"])
def test_entries_after_balladas_code_have_its_recipe(entry):
    settings = catalogue_entry(entry)
    assert (settings.optimizer, settings.epochs, settings.learning_rate) == ("sgd", 10, 0.2)
    assert (settings.sampler, settings.per_class) == ("cycle", 4)


def store_of_levels(folder, samples=40, levels=5, draws=3, standard=2):
    """A store whose features say which view and sample they are."""
    stronger = [level / levels for level in range(1, levels + 1) for _ in range(draws)]
    strengths = [0.0] * standard + stronger
    views = np.zeros((len(strengths), samples, 3), np.float32)
    views[..., 0] = np.array(strengths)[:, None]
    views[..., 1] = np.arange(samples)
    views[..., 2] = np.arange(len(strengths))[:, None]
    labels = np.arange(samples) % 4
    write_features(
        folder / "train.h5",
        features=views[0],
        labels=labels,
        class_names=list("abcd"),
        class_counts=np.bincount(labels).tolist(),
        views=views,
        view_strength=np.array(strengths, np.float32),
    )
    return FeatureStore.open(folder / "train.h5")


def test_views_are_of_the_strength_level_nearest_to_each_memory(tmp_path):
    store = store_of_levels(tmp_path)
    source = CachedViews(store, CPU, plain=False, by_strength=True)
    memory = torch.rand((2, 40), generator=generator(0, "m"))
    order = torch.randint(40, (2, 200), generator=generator(0, "o"))
    used = set()
    for index, target, views in source.epoch(order, memory, 2, 64, generator(0, "d")):
        assert views.shape == (2, 2, *index.shape[1:], 3)
        assert torch.equal(target, torch.from_numpy(store.labels)[index])
        for view in range(2):
            assert torch.equal(views[:, view, :, 1].long(), index)
            strength = views[:, view, :, 0]
            asked = memory.gather(1, index)
            levels = torch.arange(6) / 5
            nearest = (asked.unsqueeze(-1) - levels).abs().min(-1).values
            torch.testing.assert_close((asked - strength).abs(), nearest)
        used |= set(views[..., 2].flatten().long().tolist())
    # All draws of a level come up, and both standard views.
    assert used == set(range(17))


@pytest.mark.parametrize(("standard", "draws"), [(2, 2), (3, 5), (9, 3)])
def test_two_views_of_an_image_are_two_different_views_drawn_alike(tmp_path, standard, draws):
    """Every ordered pair of different views of a level comes up equally often, no equal pair."""
    store = store_of_levels(tmp_path, draws=draws, standard=standard)
    source = CachedViews(store, CPU, plain=False, by_strength=True, pairs=True)
    stream = generator(0, "m")
    order = torch.randint(40, (1, 24_000), generator=stream)
    for asked in (None, torch.zeros(1, 40), torch.full((1, 40), 0.4), torch.rand(1, 40)):
        pairs = torch.zeros(len(store.views), len(store.views))
        for index, _, views in source.epoch(order, asked, 2, 4096, generator(1, "d")):
            first, second = views[0, 0, :, 2].long(), views[0, 1, :, 2].long()
            assert torch.equal(views[0, 1, :, 1].long(), index[0])
            assert (first != second).all()
            assert torch.equal(views[0, 0, :, 0], views[0, 1, :, 0])
            pairs.index_put_((first, second), torch.ones(len(first)), accumulate=True)
        start = 0
        for number in [standard] + [draws] * 5:
            inside = pairs[start : start + number, start : start + number]
            expected = inside.sum() / (number * (number - 1))
            counts = inside[~torch.eye(number, dtype=torch.bool)]
            # Six standard deviations of a count.
            assert ((counts - expected).abs() <= 6 * expected.sqrt()).all()
            start += number


def test_the_contrast_is_that_of_two_different_views(store):
    """A mutant that takes one view twice measures less, from the first epoch on."""
    found = {}
    for name in ("ours", "same view"):
        fit = phase2_of(store, epochs=1, batch_size=16)
        losses, original = [], fit.memory.add

        def add(index, values, losses=losses, original=original):
            losses.append(values)
            original(index, values)

        fit.memory.add = add
        if name == "same view":
            epoch = fit.source.epoch

            def same(*arguments, epoch=epoch):
                for index, target, views in epoch(*arguments):
                    yield index, target, views[:, :1].expand_as(views)

            fit.source.epoch = same
        fit.run()
        found[name] = torch.cat(losses, 1).mean().item()
    # The loss of an image whose views differ is larger: the positive's cosine is below one.
    assert found["ours"] > found["same view"] + 0.01


def test_one_view_is_refused_where_two_are_contrasted(tmp_path):
    one = store_of_levels(tmp_path, standard=1)
    with pytest.raises(InputError, match=r"strength 0 has one view, and two views"):
        CachedViews(one, CPU, plain=False, by_strength=False, pairs=True)
    (tmp_path / "b").mkdir()
    levels = store_of_levels(tmp_path / "b", draws=1)
    with pytest.raises(InputError, match=r"strength 0\.2 has one view"):
        CachedViews(levels, CPU, plain=False, by_strength=True, pairs=True)
    CachedViews(levels, CPU, plain=False, by_strength=False, pairs=True)
    CachedViews(levels, CPU, plain=False, by_strength=True)


@pytest.mark.parametrize("value", [0.0, 0.09, 0.5, 1.0])
def test_equal_memory_picks_one_strength_for_all(tmp_path, value):
    source = CachedViews(store_of_levels(tmp_path), CPU, plain=False, by_strength=True)
    order = torch.arange(40).unsqueeze(0)
    memory = torch.full((1, 40), value)
    (batch,) = source.epoch(order, memory, 2, 40, generator(0, "d"))
    assert len(batch[2][..., 0].unique()) == 1


def test_without_memory_views_are_the_standard_ones(tmp_path):
    source = CachedViews(store_of_levels(tmp_path), CPU, plain=False, by_strength=True)
    order = torch.arange(40).unsqueeze(0)
    (batch,) = source.epoch(order, None, 2, 40, generator(0, "d"))
    assert set(batch[2][..., 2].flatten().tolist()) == {0.0, 1.0}


def test_a_store_without_what_is_asked_for_is_named(tmp_path, store):
    bare = FeatureStore(
        path=tmp_path / "bare.h5",
        features=store.features,
        labels=store.labels,
        index=store.index,
        class_counts=store.class_counts,
        class_names=store.class_names,
        views=store.views,
    )
    with pytest.raises(InputError, match=r"bare.h5: no RandAugment views .* features.ladder"):
        CachedViews(bare, CPU, plain=False, by_strength=True)
    with pytest.raises(InputError, match=r"bare.h5: holds no class texts"):
        class_texts(bare)


def test_memory_order_draws_classes_alike_and_samples_by_memory():
    labels = torch.tensor([0] * 60 + [1] * 30 + [2] * 10).repeat(100)
    scores = torch.rand(10_000, generator=generator(0, "s"))
    scores[labels == 2] = 0.0
    order = memory_order(labels, scores, 3, 4, generator(1, "o"))
    assert order.shape == (10_000,)
    drawn = labels[order]
    np.testing.assert_allclose(np.bincount(drawn) / 1e4, 1 / 3, atol=0.02)
    # Four in a row of each class.
    assert (drawn.view(-1, 4) == drawn.view(-1, 4)[:, :1]).all()
    for label in (0, 1):
        mine = scores[order[drawn == label]]
        own = scores[labels == label]
        assert mine.mean() == pytest.approx(((own**2).sum() / own.sum()).item(), abs=0.02)
    last = order[drawn == 2]
    assert len(last.unique()) > 900


@pytest.mark.parametrize(
    "settings",
    [
        {"batch_size": 16, "mu": [0.1, 1.0], "learning_rate": 0.05},
        {"momentum": False, "randaugment": False, "adapter": {"relu": False, "bias": False}},
        {"optimizer": "adamw", "learning_rate": 0.01, "memory_update": "all", "batch_size": 32},
        {"memory_sampling": True, "deviation": "signed", "batch_size": 16},
        {"sampler": "cycle", "batch_size": 16},
        {"momentum": False, "randaugment": False, "views": "plain"},
    ],
)
def test_it_keeps_all_methods_promises_in_other_settings(settings, tmp_path):
    check_method("ecvl", tmp_path, **settings)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"views": "plain"}, "momentum needs two"),
        ({"online": True, "mu": [0.1, 1.0]}, "runs one point"),
        ({"online": True, "memory_update": "all"}, "reads the cache"),
        ({"memory_sampling": True, "sampler": "shuffle"}, "leave sampler"),
        ({"adapter": {"lambda": 1.5}}, "between 0 and 1"),
        ({"adapter": {"share": 0.5}}, "known here: bias, lambda, relu"),
        ({"mu": [1.0, 1.0]}, "names a value twice"),
        ({"optimizer": "adamw", "sgd_momentum": 0.5}, "belongs to optimizer: sgd"),
    ],
)
def test_settings_that_cannot_be_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        settings_of(**values)


BACKBONE = {
    "system": "vision-language",
    "network": "small-vit",
    "epochs": 2,
    "batch_size": 32,
    "learning_rate": 1e-3,
    "logit_scale": 10.0,
    "precision": "fp32",
}


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    base = tmp_path_factory.mktemp("digits")
    data = draw(base)
    spec = {"kind": "stage1", "dataset": DIGITS, "backbone": BACKBONE, "seed": 0}
    run_job(vision_language, spec, base / "stage1", data=data)
    embed(base / "features", BACKBONE, base / "stage1", data, views=3, ladder={"strengths": 4})
    return base


def online_job(digits, output, **method):
    spec = {
        "kind": "stage2",
        "method": {"kind": "ecvl", "online": True, "epochs": 2, "batch_size": 64, **method},
        "groups": "ranks",
        "seed": 0,
        "dataset": DIGITS,
        "backbones": {"features": BACKBONE},
    }
    inputs = {
        "features.features": digits / "features",
        "stage1.features": digits / "stage1",
        "data": digits / "data",
    }
    output.mkdir(parents=True)
    return Job(spec, inputs, output, CPU)


def test_online_trains_on_the_towers_own_views(digits, tmp_path):
    facts = ecvl.run(online_job(digits, tmp_path / "a"))
    assert facts["online"]
    assert "not pretrained" in facts["towers"]
    again = ecvl.run(online_job(digits, tmp_path / "b"))
    assert {**facts, "seconds_per_epoch": 0} == {**again, "seconds_per_epoch": 0}
    files = [(tmp_path / name / "models.safetensors").read_bytes() for name in "ab"]
    assert files[0] == files[1]


def test_online_features_are_those_that_are_cached(digits, tmp_path, monkeypatch):
    """With images that no augmentation moves, the loop's views are the plain features."""
    from ltpipe.data import batches
    from ltpipe.stage2.ecvl.online import OnlineViews

    monkeypatch.setattr(
        batches, "augment", lambda batch, plan, draws: batches.centre_crop(batch, plan.size)
    )
    store = FeatureStore.open(digits / "features/train.h5")
    views = OnlineViews(online_job(digits, tmp_path / "a"), store, randaugment=True)
    order = torch.arange(len(store.labels)).flip(0).unsqueeze(0)
    plain = torch.from_numpy(store.features)
    none, full = torch.zeros(order.shape), torch.ones(order.shape)
    for index, target, found in views.epoch(order, none, 2, 50, generator(0, "d")):
        assert torch.equal(target, torch.from_numpy(store.labels)[index])
        assert found.shape == (1, 2, index.shape[1], 64)
        for view in range(2):
            torch.testing.assert_close(found[:, view], plain[index], rtol=1e-3, atol=1e-4)
    for index, _, found in views.epoch(order, full, 2, 50, generator(0, "d")):
        moved = ~torch.isclose(found[:, 0], plain[index], rtol=1e-2, atol=1e-2).all(-1)
        assert moved.float().mean() > 0.7
        assert not torch.allclose(found[:, 0], found[:, 1], atol=1e-2)


def test_online_randaugment_needs_a_described_ladder(digits, tmp_path):
    from ltpipe.stage2.ecvl.online import OnlineViews

    store = FeatureStore.open(digits / "features/train.h5")
    assert json.loads(store.attributes["ladder"])["strengths"] == 4
    store.attributes["ladder"] = ""
    job = online_job(digits, tmp_path / "a")
    with pytest.raises(InputError, match=r"has no features.ladder, which says how"):
        OnlineViews(job, store, randaugment=True)
