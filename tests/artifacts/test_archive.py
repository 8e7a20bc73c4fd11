"""`ltpipe pack`: from its archive alone, classifiers come out as they did in the experiment."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest

from ltpipe.artifacts.archive import DESCRIPTION
from ltpipe.cli.program import main
from ltpipe.utils.io import file_sha256
from tests import plans

BACKBONE = {"network": "resnet8", "epochs": 1, "batch_size": 32, "features": {"views": 2}}
EXPERIMENT = {
    "experiment": "small",
    "title": "Two networks",
    "seeds": [0, 3],
    "datasets": {"digits-lt": {"label": "Digits", "groups": "thresholds"}},
    "backbones": {
        "ce": {**BACKBONE, "loss": {"name": "ce"}},
        "kps": {**BACKBONE, "head": "cosine", "loss": {"name": "kps"}},
    },
    "methods": {
        "CE": {"kind": "backbone-head", "backbones": {"features": "ce"}},
        "FFN": {"kind": "ffn", "backbones": {"ce": "ce", "kps": "kps"}, "epochs": 2},
        "NCM": {"kind": "ncm", "backbones": {"features": "kps"}},
        "online": {
            "kind": "ffn",
            "backbones": {"ce": "ce", "kps": "kps"},
            "epochs": 1,
            "online": True,
        },
    },
    "runs": [{"methods": ["CE", "FFN", "online"]}, {"methods": ["NCM"], "seeds": [3]}],
    "tables": {
        "main": {"rows": [{"method": "CE"}, {"method": "FFN"}, {"method": "online"}]},
        "online": {"rows": [{"method": "online"}]},
    },
}
pytestmark = pytest.mark.heavy


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder with the experiment's stores, weights and results; its images are not used."""
    folder = tmp_path_factory.mktemp("first")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("LTPIPE_DATA", raising=False)
        plan = plans.plan_of(plans.write_experiment(folder, EXPERIMENT))
        for kind in ("data", "stage1", "features", "stage2"):
            for cell in plan.of_kind(kind):
                if not cell.spec.get("method", {}).get("online"):
                    assert plans.run_cell(cell) == 0, cell.title
    return folder


@pytest.fixture
def first(finished, monkeypatch):
    monkeypatch.chdir(finished)
    monkeypatch.delenv("LTPIPE_DATA", raising=False)
    return finished


def results(folder: Path, method: str) -> list[bytes]:
    return sorted(p.read_bytes() for p in (folder / "results/stage2").glob(f"*/{method}/*/*/*.csv"))


def pack(folder: Path, name: str) -> Path:
    catalogue = str(plans.CATALOGUE)
    output = folder / name
    line = ["pack", "experiment.yaml", "--catalogue", catalogue, "--output", str(output)]
    assert main(line) == 0
    return output


def test_classifiers_come_out_as_they_did(first, tmp_path, monkeypatch, capsys):
    archive = pack(tmp_path, "a.tar")
    assert "left out, as it needs images or features of its own: online" in capsys.readouterr().out
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path, filter="data")
    second = tmp_path / "small"
    facts = json.loads((second / DESCRIPTION).read_text())
    there = {p.relative_to(second).as_posix() for p in second.rglob("*") if p.is_file()}
    assert there == {*facts["files"], DESCRIPTION}
    assert all(file_sha256(second / name) == digest for name, digest in facts["files"].items())
    assert str(first) not in json.dumps(facts)
    weights = [file_sha256(p) for p in first.rglob("results/stage1/**/model.safetensors")]
    packed = [digest for name, digest in facts["files"].items() if name.startswith("weights/")]
    assert sorted(packed) == sorted(weights) and len(packed) == 4
    monkeypatch.chdir(second)
    monkeypatch.setenv("LTPIPE_DATA", "features")  # As a run takes it from the file.
    plan = plans.run_plan(second / "experiment.yaml")
    assert list(plan.experiment.methods) == ["CE", "FFN", "NCM"]
    assert list(plan.experiment.file.tables) == ["main"]
    for dataset in plan.experiment.datasets.values():
        assert dataset.settings.groups == "thresholds"
        assert dataset.settings.label.startswith("Digits, backbones of seed ")
    for name, number in (("CE", 2), ("FFN", 2), ("NCM", 1)):
        assert len(results(second, name)) == number
        assert results(second, name) == results(first, name)


def test_the_same_artifacts_give_the_same_bytes(first, tmp_path):
    assert pack(tmp_path, "a.tar").read_bytes() == pack(tmp_path, "b.tar").read_bytes()


def test_what_is_not_there_or_damaged_is_said_and_leaves_nothing(first, tmp_path, capsys):
    (store, *_) = sorted(first.glob("results/features/*/*/*/*/train.h5"))
    whole = store.read_bytes()
    line = ["pack", "experiment.yaml", "--catalogue", str(plans.CATALOGUE)]
    line += ["--output", str(tmp_path / "a.tar")]
    try:
        store.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        assert main(line) == 2
        assert "train.h5: damaged; delete the folder and run again" in capsys.readouterr().err
        manifest = store.with_name("manifest.json")
        manifest.rename(store.with_name("aside"))
        assert main(line) == 2
        assert "run `snakemake features` first" in capsys.readouterr().err
        store.with_name("aside").rename(manifest)
    finally:
        store.write_bytes(whole)
    assert list(tmp_path.iterdir()) == []
