"""`ltpipe adopt`: what differs in code alone is taken over, and nothing else is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from ltpipe.artifacts import adopt as adopting
from ltpipe.artifacts.adopt import dear_trainings
from ltpipe.artifacts.manifest import content_of, write_sealed
from ltpipe.artifacts.unfinished import checkpoint_in, read_unfinished
from ltpipe.artifacts.verify import verify
from ltpipe.cli.program import main
from ltpipe.plan.contents import ABSENT
from ltpipe.plan.specs import digest_of
from ltpipe.plan.workload import load_workload
from ltpipe.utils.io import file_sha256
from ltpipe.utils.lock import held
from tests import plans
from tests.artifacts.older import (
    OLD_CODE,
    by_older_code,
    by_version_0_1_0,
    pretend,
    write_training,
)

RESULTS = Path("results")


def adopt(capsys, path: Path, *more: str, status: int = 0) -> str:
    capsys.readouterr()
    assert main(["adopt", str(path), "--catalogue", str(plans.CATALOGUE), *more]) == status
    return "".join(capsys.readouterr())


def manifest_of(folder: str | Path) -> dict:
    manifest = json.loads(Path(folder, "manifest.json").read_text())
    del manifest["checksum"]
    return manifest


def snapshot(folder: Path = RESULTS) -> dict[Path, str]:
    files = [path for path in folder.rglob("*") if path.is_file() and path.name[0] != "."]
    return {path: file_sha256(path) for path in files}


def artifacts(path: Path) -> list:
    return list(plans.plan_of(path).artifacts.values())


@pytest.mark.parametrize("older", [by_older_code, by_version_0_1_0])
def test_all_that_older_code_made(tiny, capsys, older):
    path = tiny / "experiment.yaml"
    made = {cell.folder: manifest_of(cell.folder) for cell in artifacts(path)}
    moved = older()
    before = snapshot()
    said = adopt(capsys, path, "--dry-run")
    assert snapshot() == before
    assert "4 artifacts would be adopted (" in said and ", 0 left" in said
    assert adopt(capsys, path) == said.replace("would be adopted", "adopted")
    after = snapshot()
    assert before.items() <= after.items(), "nothing of the older artifacts changed"
    for folder, old in made.items():
        manifest = manifest_of(folder)
        assert f"adopted  {folder} (" in said and f"from {moved[folder]}\n" in said
        adopted = manifest.pop("adopted")
        assert adopted["from"] == moved[folder]
        assert adopted["by"].startswith("ltpipe ") and len(adopted["date"]) >= 19
        # Byte for byte the manifest that this code would have written, its run that of the older.
        assert manifest == old
        for name in old["outputs"]:
            assert Path(folder, name).samefile(Path(moved[folder], name))
    assert verify(RESULTS).wrong == []
    assert "0 artifacts adopted" in adopt(capsys, path)


def test_manifests_say_what_differs(tiny, capsys):
    path = tiny / "experiment.yaml"
    by_older_code()
    adopt(capsys, path)
    for cell in artifacts(path):
        adopted = manifest_of(cell.folder)["adopted"]
        assert adopted["code"] == OLD_CODE
        assert len(adopted["differs"]) == 1 and adopted["differs"][0].endswith(": changed")


def test_what_was_adopted_can_be_adopted_again(tiny, capsys):
    path = tiny / "experiment.yaml"
    by_older_code()
    adopt(capsys, path)
    for cell in artifacts(path):
        older = Path(manifest_of(cell.folder)["adopted"]["from"])
        shutil.rmtree(older)
    shutil.rmtree("results/experiments")
    by_older_code()
    adopt(capsys, path)
    for cell in artifacts(path):
        assert manifest_of(cell.folder)["adopted"]["earlier"]["code"] == OLD_CODE


def test_only_some_stages(tiny, capsys):
    path = tiny / "experiment.yaml"
    by_older_code()
    said = adopt(capsys, path, "--stage", "import")
    assert "2 artifacts adopted" in said, "the store and the draw that it is made from"
    kinds = {cell.kind for cell in artifacts(path) if Path(cell.folder).exists()}
    assert kinds == {"data", "import"}
    assert adopt(capsys, path).count("adopted  ") == 2


def test_other_settings_are_left(tiny, capsys):
    by_older_code()
    values = plans.changed(methods={"Linear": {"epochs": 5}})
    path = plans.write_experiment(tiny, values, "new.yaml")
    said = adopt(capsys, path)
    assert "3 artifacts adopted" in said and "1 left" in said
    (left,) = [cell for cell in artifacts(path) if cell.spec.get("method", {}).get("epochs")]
    assert f"left     {left.folder}\n" in said
    assert "setting method.epochs: 2 -> 5" in said
    assert not Path(left.folder).exists()


def test_other_contents_are_left_with_all_that_follows(tiny, capsys):
    by_older_code()
    with np.load("train.npz") as file:
        np.savez("train.npz", features=file["features"] + 1, labels=file["labels"])
    said = adopt(capsys, tiny / "experiment.yaml")
    assert "0 artifacts adopted" in said and "4 left" in said
    assert "file net/train: changed" in said
    assert "data: file net/train: changed" in said


def test_absent_data_are_no_equal_data(tiny, capsys):
    by_older_code()
    shutil.rmtree("results/fingerprints")
    Path("train.npz").unlink()
    said = adopt(capsys, tiny / "experiment.yaml")
    assert "0 artifacts adopted" in said and "files from outside (files): not there now" in said


def test_an_input_that_was_made_since_and_came_out_otherwise(tiny, capsys):
    path = tiny / "experiment.yaml"
    by_older_code()
    (imported,) = plans.plan_of(path).of_kind("import")
    adopt(capsys, path, "--stage", "import")
    manifest = manifest_of(imported.folder)
    manifest["outputs"]["train.h5"] = "0" * 64
    write_sealed(Path(imported.folder), manifest)
    said = adopt(capsys, path)
    assert "0 artifacts adopted" in said and "2 left" in said
    assert f"{imported.folder} was made since, with other contents than" in said


def test_an_input_that_is_gone(tiny, capsys):
    moved = by_older_code()
    (older,) = [old for new, old in moved.items() if "/features/" in new]
    shutil.rmtree(older)
    said = adopt(capsys, tiny / "experiment.yaml")
    assert "1 artifacts adopted" in said and f"{older} is not there any more" in said


@pytest.mark.parametrize("how", ["damaged", "missing"])
def test_damaged_artifacts_are_left(tiny, capsys, how):
    path = tiny / "experiment.yaml"
    moved = by_older_code()
    (older,) = [old for new, old in moved.items() if "/features/" in new]
    store = Path(older, "val.h5")
    data = bytearray(store.read_bytes())
    store.unlink()
    if how == "damaged":
        data[len(data) // 2] ^= 1
        store.write_bytes(data)
    said = adopt(capsys, path)
    assert f"{older}: val.h5 is {how}" in said
    assert "1 artifacts adopted" in said
    (imported,) = plans.plan_of(path).of_kind("import")
    assert not Path(imported.folder).exists()


def test_where_links_fail_files_are_copied(tiny, capsys, monkeypatch):
    def refuse(*names: object) -> None:
        raise OSError("no links here")

    by_older_code()
    monkeypatch.setattr(adopting.os, "link", refuse)
    assert "4 artifacts adopted" in adopt(capsys, tiny / "experiment.yaml")
    assert verify(RESULTS).wrong == []


def test_not_while_a_run_is_at_work(tiny, capsys):
    by_older_code()
    with held(RESULTS):
        assert "a run is at work" in adopt(capsys, tiny / "experiment.yaml", status=2)
        assert "4 artifacts would be" in adopt(capsys, tiny / "experiment.yaml", "--dry-run")
    assert "4 artifacts adopted" in adopt(capsys, tiny / "experiment.yaml")


# ---- trainings -------------------------------------------------------------------------------


@pytest.fixture
def trained(tmp_path, monkeypatch) -> Path:
    """An experiment with a training of two hours, all of it made."""
    monkeypatch.chdir(tmp_path)
    path = write_training(tmp_path)
    for planned in load_workload(path, plans.CATALOGUE).artifacts.values():
        pretend(planned)
    return path


def dear(path: Path) -> list[str]:
    return dear_trainings(load_workload(path, plans.CATALOGUE).artifacts, RESULTS, path)


def test_dear_trainings_are_named_with_their_hours(trained):
    assert dear(trained) == []
    moved = by_older_code()
    (older,) = [old for new, old in moved.items() if "/stage1/" in new]
    first, second = dear(trained)
    assert first.startswith("1 finished training (2.0 h) will be made again because of code alone")
    assert f"`ltpipe adopt {trained}`" in first
    assert second == f"  {older} (2.0 h)"
    # Where a setting differs as well, somebody wanted another training.
    assert dear(write_training(trained.parent, epochs=5)) == []


def test_dear_trainings_look_at_nothing_that_is_there(trained, monkeypatch):
    monkeypatch.setattr(adopting, "nearest", None)
    assert dear(trained) == []


def jobs(path: Path, kind: str) -> list:
    return load_workload(path, plans.CATALOGUE).of_kind(kind)


def interrupt(path: Path, monkeypatch) -> Path:
    """Train until the second epoch is done, and stop; return the training's folder."""
    from ltpipe.training import engine

    (data,), (training,) = jobs(path, "data"), jobs(path, "stage1")
    assert plans.run_cell(data) == 0
    real = engine.SupervisedTask.run_epoch

    def run_epoch(self, epoch, rate):
        if epoch == 2:
            raise KeyboardInterrupt
        return real(self, epoch, rate)

    with monkeypatch.context() as patch:
        patch.setattr(engine.SupervisedTask, "run_epoch", run_epoch)
        with pytest.raises(KeyboardInterrupt):
            plans.run_cell(training, "--checkpoint-every", "1")
    return Path(training.folder)


def make_older(folder: Path, version_0_1_0: bool = False) -> Path:
    """Move an interrupted training to where older code would have left it."""
    from ltpipe.artifacts.unfinished import bind
    from ltpipe.config.base import canonical_json, digest

    begun = read_unfinished(folder)
    assert begun is not None
    spec = {**begun.spec, "code": OLD_CODE}
    identity = {"spec": spec, "draw": begun.draw}
    if version_0_1_0:
        spec = {key: spec[key] for key in ("kind", "dataset", "backbone", "seed")}
        identity = {"spec": spec, "draw": begun.draw, "code": OLD_CODE}
        name = digest({key: spec[key] for key in ("dataset", "backbone")})
    else:
        name = digest_of(spec)
    older = folder.parents[1] / name / folder.name
    bind(begun.path, checkpoint_in(older), canonical_json(identity))
    shutil.rmtree(folder)
    return older


@pytest.mark.parametrize("version_0_1_0", [False, True])
def test_an_interrupted_training_goes_on(tmp_path, monkeypatch, capsys, version_0_1_0):
    monkeypatch.chdir(tmp_path)
    path = write_training(tmp_path)
    folder = interrupt(path, monkeypatch)
    older = make_older(folder, version_0_1_0)
    before = snapshot(older)
    said = adopt(capsys, path)
    assert f"adopted  {folder} (" in said and f"from {older}\n" in said
    assert "interrupted after 2 epochs, from which it goes on" in said
    assert snapshot(older) == before
    (training,) = jobs(path, "stage1")
    assert plans.run_cell(training) == 0
    assert "going on after epoch 2" in "".join(capsys.readouterr())
    went_on = manifest_of(folder)["outputs"]["model.safetensors"]
    shutil.rmtree(folder)
    assert plans.run_cell(training) == 0
    assert "going on" not in "".join(capsys.readouterr())
    assert manifest_of(folder)["outputs"]["model.safetensors"] == went_on


def test_an_interrupted_training_of_other_settings_is_left(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make_older(interrupt(write_training(tmp_path), monkeypatch))
    other = write_training(tmp_path, learning_rate=0.05)
    assert "0 artifacts adopted" in adopt(capsys, other)
    (training,) = jobs(other, "stage1")
    assert not Path(training.folder).exists()


def test_what_is_begun_already_is_kept(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    path = write_training(tmp_path)
    folder = interrupt(path, monkeypatch)
    shutil.copytree(folder, tmp_path / "kept")
    make_older(folder)
    shutil.copytree(tmp_path / "kept", folder)
    assert "0 artifacts adopted" in adopt(capsys, path)
    assert file_sha256(checkpoint_in(folder)) == file_sha256(checkpoint_in(tmp_path / "kept"))


@pytest.mark.parametrize("content", [b"", b"\xff" * 64, b"\x02\0\0\0\0\0\0\0{}", b"short"])
def test_damaged_checkpoints_are_none(tmp_path, content):
    path = checkpoint_in(tmp_path)
    path.parent.mkdir()
    path.write_bytes(content)
    assert read_unfinished(tmp_path) is None


# ---- real results of version 0.1.0 -----------------------------------------------------------

REAL = plans.CATALOGUE.parents[1] / "shared/data/cifar10_lt100_ce"


@pytest.mark.realdata
@pytest.mark.skipif(not REAL.is_dir(), reason=f"{REAL} is not there")
def test_a_real_training_of_version_0_1_0(tmp_path, monkeypatch, capsys, real_data):
    monkeypatch.chdir(tmp_path)
    inputs = manifest_of(REAL / "features")["inputs"]
    training, data = Path(inputs["stage1"]["path"]), Path(inputs["data"]["path"])
    shutil.copytree(REAL / "stage1", training)
    shutil.copytree(REAL / "subset", data)
    values = {
        "experiment": "real",
        "seeds": [0],
        "data": {"root": str(real_data)},
        "datasets": {"cifar10-lt": {}},
        "backbones": {"resnet32-ce": manifest_of(training)["spec"]["backbone"]},
        "methods": {"NCM": {"kind": "ncm", "backbones": {"features": "resnet32-ce"}}},
        "tables": {"main": {"rows": [{"method": "NCM"}]}},
    }
    path = plans.write_experiment(tmp_path, values)
    (planned,) = jobs(path, "stage1")
    if planned.inputs["data"].spec["outside"]["files"] == ABSENT:
        pytest.skip("CIFAR-10 is not there")
    said = adopt(capsys, path)
    assert "2 artifacts adopted (1.1 h to make)" in said
    assert "is on your word" in said
    manifest = manifest_of(planned.folder)
    assert manifest["wall_s"] == 4034.39
    assert manifest["adopted"]["from"] == training.as_posix()
    assert content_of(manifest) != inputs["stage1"]["content"]
    assert verify(RESULTS).wrong == []
