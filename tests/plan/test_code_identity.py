"""A code identity lists exactly the modules that a result depends on, and sees what matters."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ltpipe.artifacts.manifest import code_modules
from ltpipe.config.experiment import resolve
from ltpipe.config.registry import registered
from ltpipe.plan.layout import build_plan, code_entries

REPOSITORY = Path(__file__).resolve().parents[2]

STORE = {"ltpipe.features.store", "ltpipe.features"}
RESULTS = STORE | {
    "ltpipe.stage2",
    "ltpipe.stage2.core.results",
    "ltpipe.stage2.core.inference",
    "ltpipe.evaluation",
    "ltpipe.evaluation.metrics",
}
FIT = {
    "ltpipe.stage2.core.fit",
    "ltpipe.stage2.core.batches",
    "ltpipe.stage2.core.heads",
    "ltpipe.stage2.core.logit_gradients",
    "ltpipe.losses.base",
    "ltpipe.data.sampling",
    "ltpipe.utils.seeding",
    "ltpipe.training.schedules",
}
DECOUPLED = RESULTS | {"ltpipe.stage2.core.one_backbone"}
RETRAINED = DECOUPLED | FIT | {"ltpipe.stage2.core.retraining"}
TEXTS = {"ltpipe.stage2.core.texts"}
METHODS = {
    "own-classifier": DECOUPLED | {"ltpipe.stage2.simple.own_classifier"},
    "logit-fusion": RESULTS | {"ltpipe.stage2.ffn.logit_fusion"},
    "ffn": RESULTS | FIT | {"ltpipe.stage2.ffn.job", "ltpipe.losses.margin"},
    "classifier": RETRAINED
    | {
        "ltpipe.stage2.simple.classifier",
        "ltpipe.losses.building",
        "ltpipe.losses.softmax",
        "ltpipe.losses.weights",
    },
    "lws": RETRAINED
    | {"ltpipe.stage2.simple.lws", "ltpipe.losses.building", "ltpipe.losses.softmax"},
    "mislas": RETRAINED
    | {
        "ltpipe.stage2.simple.mislas",
        "ltpipe.stage2.simple.lws",
        "ltpipe.losses.building",
        "ltpipe.losses.smoothing",
    },
    "m2m": RETRAINED | {"ltpipe.stage2.simple.m2m", "ltpipe.losses.softmax"},
    "ride": RETRAINED
    | {
        "ltpipe.stage2.simple.ride",
        "ltpipe.losses.building",
        "ltpipe.losses.margin",
        "ltpipe.losses.weights",
    },
    "dlsa": DECOUPLED
    | FIT
    | {
        "ltpipe.stage2.dlsa.job",
        "ltpipe.stage2.dlsa.embedded",
        "ltpipe.stage2.dlsa.cosine_parts",
        "ltpipe.stage2.dlsa.filter",
        "ltpipe.stage2.core.filters",
        "ltpipe.stage2.dlsa.pairs",
        "ltpipe.stage2.dlsa.clusters",
        "ltpipe.models.flow",
        "ltpipe.models.masked",
        "ltpipe.training.devices",
        "ltpipe.stage2.dlsa.losses",
        "ltpipe.training.optimizers",
        "ltpipe.stage2.simple.m2m",
        "ltpipe.stage2.simple.ride",
        "ltpipe.stage2.core.retraining",
        "ltpipe.losses.building",
        "ltpipe.losses.softmax",
        "ltpipe.losses.weights",
    },
    "hrjba": RETRAINED
    | {
        "ltpipe.stage2.hrjba.job",
        "ltpipe.stage2.hrjba.groups",
        "ltpipe.stage2.hrjba.routing",
        "ltpipe.stage2.core.filters",
        "ltpipe.stage2.simple.classifier",
        "ltpipe.data.head_tail",
        "ltpipe.losses.building",
        "ltpipe.losses.softmax",
        "ltpipe.losses.weights",
    },
    "oracle-mask": DECOUPLED
    | {"ltpipe.stage2.hrjba.oracle_mask", "ltpipe.stage2.hrjba.groups", "ltpipe.data.head_tail"},
    "label-mapping": RETRAINED
    | {
        "ltpipe.stage2.cws.label_mapping",
        "ltpipe.stage2.cws.perceptron",
        "ltpipe.models.mapping",
        "ltpipe.training.rules",
        "ltpipe.losses.building",
        "ltpipe.losses.softmax",
        "ltpipe.losses.weights",
    },
    "cached-splitting": RETRAINED
    | {
        "ltpipe.stage2.cws.cached_splitting",
        "ltpipe.stage2.cws.perceptron",
        "ltpipe.models.mapping",
        "ltpipe.stage1.cws.clustering",
        "ltpipe.training.rules",
        "ltpipe.stage1.cws.subclasses",
        "ltpipe.losses.building",
        "ltpipe.losses.softmax",
        "ltpipe.losses.weights",
    },
    "stacked": RESULTS
    | {"ltpipe.stage2.simple.stacked", "ltpipe.stage2.core.inference", "ltpipe.evaluation.records"},
    "tau-norm": DECOUPLED | {"ltpipe.stage2.simple.tau_norm"},
    "logit-adjusted": DECOUPLED | {"ltpipe.stage2.simple.logit_adjusted", "ltpipe.losses.base"},
    "ecvl": DECOUPLED
    | FIT - {"ltpipe.stage2.core.batches"}
    | TEXTS
    | {
        "ltpipe.stage2.ecvl.job",
        "ltpipe.stage2.ecvl.ladder",
        "ltpipe.stage2.ecvl.memory",
        "ltpipe.stage2.ecvl.losses",
        "ltpipe.training.optimizers",
    },
    "zero-shot": DECOUPLED | TEXTS | {"ltpipe.stage2.simple.zero_shot"},
    "ncm": DECOUPLED | {"ltpipe.stage2.simple.ncm"},
}


def modules_of(spec):
    return set(code_modules(code_entries(spec)))


def without_packages(modules):
    packages = {"ltpipe.data", "ltpipe.training", "ltpipe.models", "ltpipe.stage1", "ltpipe.stage2"}
    packages |= {"ltpipe.features", "ltpipe.evaluation", "ltpipe.data.readers"}
    return set(modules) - packages


@pytest.mark.parametrize("kind", registered("method"))
def test_a_methods_identity_lists_exactly_its_modules(kind):
    found = modules_of({"kind": "stage2", "method": {"kind": kind}})
    assert without_packages(found) == without_packages(METHODS[kind])


def test_a_backbones_identity_has_its_own_loss_and_network_alone():
    catalogue = REPOSITORY / "config"
    methods = {
        name: {"use": "own-classifier", "backbones": {"features": name}}
        for name in ("resnet8-ce", "resnet8-kps")
    }
    values = {"experiment": "x", "datasets": {"digits-lt": None}, "methods": methods, "seeds": [0]}
    cells = build_plan(resolve(values, catalogue)).of_kind("stage1")
    found = {cell.spec["backbone"]["loss"]["name"]: modules_of(cell.spec) for cell in cells}
    assert "ltpipe.losses.softmax" in found["ce"]
    assert "ltpipe.losses.margin" in found["kps"]
    assert found["ce"] - found["kps"] == {"ltpipe.losses.softmax"}
    assert found["kps"] - found["ce"] == {"ltpipe.losses.margin"}
    for modules in found.values():
        assert not any(
            name.startswith(("ltpipe.stage2.", "ltpipe.evaluation.")) for name in modules
        )
        assert not {"ltpipe.losses.reweight", "ltpipe.models.torchvision_resnet"} & modules
        assert not {"ltpipe.data.readers.cifar", "ltpipe.data.readers.folder"} & modules


def test_nothing_that_cannot_change_a_number_counts():
    for kind in registered("method"):
        for name in modules_of({"kind": "stage2", "method": {"kind": kind}}):
            assert not name.startswith("ltpipe.config")
            assert name not in (
                "ltpipe.cli.program",
                "ltpipe.artifacts.manifest",
                "ltpipe.config.registry",
                "ltpipe.utils.io",
            )


@pytest.fixture
def package(tmp_path):
    """A copy of the package, and a function that gives FFN's identity in it."""
    shutil.copytree(
        REPOSITORY / "ltpipe",
        tmp_path / "ltpipe",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    code = (
        "from ltpipe.artifacts.manifest import code_identity\n"
        "from ltpipe.plan.layout import code_entries\n"
        "print(code_identity(code_entries({'kind': 'stage2', 'method': {'kind': 'ffn'}})))"
    )

    def identity():
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(tmp_path)},
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.strip()

    return tmp_path / "ltpipe", identity


LOOP = "    momenta: Parameters = {}\n"


@pytest.mark.parametrize(
    ("module", "old", "new", "counts"),
    [
        ("stage2/core/fit.py", LOOP, LOOP.replace("\n", "  # a remark\n"), False),
        ("stage2/core/fit.py", LOOP, "\n\n" + LOOP, False),
        ("stage2/core/fit.py", '"""The one fit loop', '"""Other words. The one fit loop', False),
        ("stage2/core/fit.py", LOOP, LOOP.replace("{}", "{**{}}"), True),
        ("stage2/core/fit.py", LOOP, "    if True:\n    " + LOOP, True),
        ("losses/margin.py", "def _subtract", "ONE = 1\n\n\ndef _subtract", True),
        ("losses/weights.py", "def _sum_to", "ONE = 1\n\n\ndef _sum_to", False),
        ("cli/program.py", "def main(", "ONE = 1\n\n\ndef main(", False),
        ("config/methods/fusion.py", "class CeAndKps(", "ONE = 1\n\n\nclass CeAndKps(", False),
    ],
)
def test_what_counts_as_a_change(package, module, old, new, counts):
    folder, identity = package
    before = identity()
    text = (folder / module).read_text()
    assert old in text
    (folder / module).write_text(text.replace(old, new, 1))
    assert (identity() != before) == counts
