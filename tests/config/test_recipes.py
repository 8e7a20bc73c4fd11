"""The catalogue's published recipes: rates of every epoch, precision, settings of each data set."""

from __future__ import annotations

from pathlib import Path

import pytest

from ltpipe.config.experiment import load_experiment, resolve
from ltpipe.training.engine import learning_rates

CATALOGUE = Path(__file__).resolve().parents[2] / "config"
PAPERS = ("ffn", "hrjba", "hrjba_baselines", "decoupling", "cws", "dlsa", "dlsa_released")


def catalogue(backbones=(), methods=()):
    values = {
        "experiment": "recipes",
        "datasets": {"cifar10-lt": None},
        "backbones": {name: {} for name in backbones},
        "methods": dict.fromkeys(methods)
        | {"probe": {"use": "backbone-head", "backbones": {"features": "resnet32-ce"}}},
        "runs": [{"methods": ["probe"]}],
    }
    found = resolve(values, CATALOGUE)
    return {name: found.backbones[name].settings for name in backbones}


def test_bbn_is_trained_at_the_rates_of_its_code():
    """Its scheduler, stepped before each 1-based epoch e: 1/3 to 1 linearly, 0.01 from 120, 160."""
    (settings,) = catalogue(["bbn-cifar"]).values()
    rates = learning_rates(settings)
    assert len(rates) == 200
    for e, rate in enumerate(rates, 1):
        alpha = e / 5
        warm = 1 / 3 * (1 - alpha) + alpha if e < 5 else 1.0
        expected = 0.1 * warm * 0.01 ** sum(e >= milestone for milestone in (120, 160))
        assert rate == pytest.approx(expected, rel=1e-12), e
    assert [round(rate, 4) for rate in rates[:5]] == [0.0467, 0.06, 0.0733, 0.0867, 0.1]
    assert settings.nesterov
    assert settings.drop_last
    assert settings.weight_decay == 2e-4


@pytest.mark.parametrize("branch", ["ce", "kps"])
@pytest.mark.parametrize(
    ("data", "warmup", "drops", "weight_decay"),
    [
        ("cifar10", 5, {160: 0.01, 180: 0.01}, 2e-4),
        ("cifar100", 5, {160: 0.01, 180: 0.01}, 2e-4),
        ("imagenet", 0, {120: 0.1, 160: 0.1}, 1e-4),
    ],
)
def test_ffns_branches_are_trained_at_the_rates_of_its_text(
    branch, data, warmup, drops, weight_decay
):
    (settings,) = catalogue([f"ffn-{data}-{branch}-paper"]).values()
    rates = learning_rates(settings)
    assert len(rates) == 200
    running = 0.1
    for epoch, rate in enumerate(rates):
        # Each drop is of the rate before, as the text has it.
        running *= drops.get(epoch, 1)
        expected = 0.1 * (epoch + 1) / warmup if epoch < warmup else running
        assert rate == pytest.approx(expected, rel=1e-12), epoch
    assert settings.weight_decay == weight_decay
    assert settings.batch_size == 64


def test_ffns_branches_are_trained_at_the_rates_of_its_code():
    """A factor of the code is of the initial rate: 0.1 and 0.01 on CIFAR-10 and ImageNet-LT."""
    late = {"cifar10": (0.01, 0.001), "cifar100": (0.001, 0.001), "imagenet": (0.01, 0.001)}
    for data, (middle, end) in late.items():
        (settings,) = catalogue([f"ffn-{data}-kps"]).values()
        rates = learning_rates(settings)
        for epoch, rate in enumerate(rates):
            expected = 0.1 * min(1, (epoch + 1) / 5)
            expected = middle if epoch >= 160 else expected
            expected = end if epoch >= 180 else expected
            assert rate == pytest.approx(expected, rel=1e-12), (data, epoch)


@pytest.mark.parametrize("name", PAPERS)
def test_papers_are_trained_and_extracted_in_full_precision(name):
    experiment = load_experiment(CATALOGUE / f"experiments/{name}.yaml")
    for section, backbone in experiment.parts_in_use():
        if section == "backbones":
            settings = experiment.backbones[backbone].settings
            if settings.system != "vision-language":
                assert settings.precision == "fp32", backbone
                assert settings.features.precision == "fp32", backbone


def test_focal_under_class_weights_is_ldams_in_the_papers_experiments():
    for name in ("hrjba_baselines", "cws"):
        experiment = load_experiment(CATALOGUE / f"experiments/{name}.yaml")
        losses = [entry.settings.loss for entry in experiment.backbones.values()]
        losses += [
            entry.settings.loss
            for entry in experiment.methods.values()
            if hasattr(entry.settings, "loss")
        ]
        focal = [loss for loss in losses if loss is not None and loss.name == "focal"]
        assert len(focal) >= 4
        assert all(loss.ldam_compat for loss in focal)


def test_each_data_set_has_the_mislas_of_its_released_configuration():
    """smooth_head, smooth_tail, lr_factor, shift_bn, batch_size and weight_decay of config/."""
    released = {
        "mislas-cifar10": (0.3, 0.0, 0.5, False, 128, 2e-4),
        "mislas-cifar100": (0.4, 0.1, 0.2, True, 128, 2e-4),
        "mislas-imagenet": (0.3, 0.0, 0.05, True, 256, 5e-4),
        "mislas-places": (0.4, 0.1, 0.05, True, 256, 5e-4),
        "mislas-inaturalist": (0.3, 0.0, 0.05, True, 256, 1e-4),
    }
    backbones = {"features": "resnet32-mixup"}
    values = {
        "experiment": "mislas",
        "datasets": {"cifar10-lt": None},
        "methods": {name: {"backbones": backbones} for name in released},
    }
    found = resolve(values, CATALOGUE).methods
    for name, expected in released.items():
        s = found[name].settings
        assert expected == (
            s.head,
            s.tail,
            s.classifier_factor,
            s.shift_batch_norm,
            s.batch_size,
            s.weight_decay,
        ), name
        assert (s.learning_rate, s.epochs, s.schedule) == (0.1, 10, "cosine")
        moved = s.feature_overrides("features")
        assert moved == ({"batch_norm": "re-estimated"} if s.shift_batch_norm else {})


def test_paco_takes_its_released_views():
    found = catalogue(["paco-cifar", "paco-imagenet"])
    assert [s.views for s in found.values()] == ["cifar", "imagenet"]


def test_methods_on_features_say_so():
    values = {
        "experiment": "names",
        "datasets": {"cifar10-lt": None},
        "methods": {n: {"backbones": {"features": "resnet32-views"}} for n in ("m2m", "ride")},
    }
    found = resolve(values, CATALOGUE).methods
    assert [found[n].settings.label for n in found] == ["M2m (features)", "RIDE (features)"]


def test_table_5_of_ffn_has_kps_as_it_is_and_with_mixup():
    experiment = load_experiment(CATALOGUE / "experiments/ffn.yaml")
    for data in ("cifar10", "cifar100", "imagenet"):
        for method, mixed in ((f"KPS-{data}", False), (f"KPS-mixup-{data}", True)):
            (name,) = experiment.methods[method].settings.roles().values()
            assert (experiment.backbones[name].settings.mixup > 0) is mixed
        rows = {
            row.method: row.paper_method for row in experiment.file.tables[f"table5-{data}"].rows
        }
        assert rows[f"KPS-{data}"] == "KPS"
        assert rows[f"KPS-mixup-{data}"] is None


def test_hata_beside_the_papers_number_is_deferred_as_hrjba_is():
    experiment = load_experiment(CATALOGUE / "experiments/hrjba.yaml")
    for row in experiment.file.tables["table5"].rows:
        if row.paper_method in ("HATA", "HRJBA(oracle)"):
            names = experiment.methods[row.method].settings.roles().values()
            assert {experiment.backbones[name].settings.rule.name for name in names} == {"drw"}
