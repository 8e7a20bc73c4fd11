"""`ltpipe verify`: every hash, in place or in an archive, and nothing is written."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tarfile
import zlib
from pathlib import Path

import h5py
import numpy as np
import pytest

from ltpipe.artifacts.manifest import write_sealed
from ltpipe.artifacts.verify import verify
from ltpipe.cli.program import main
from tests import plans
from tests.artifacts.older import by_version_0_1_0


def only(folder: str, pattern: str) -> Path:
    (path,) = Path(folder).rglob(pattern)
    return path


def test_a_finished_tree_is_as_recorded(tiny, capsys):
    before = {path: path.stat().st_mtime_ns for path in tiny.rglob("*")}
    assert main(["verify"]) == 0
    said = capsys.readouterr().out
    assert "checked 5 artifacts" in said and "all as recorded" in said
    assert "note" not in said
    assert {path: path.stat().st_mtime_ns for path in tiny.rglob("*")} == before


@pytest.mark.parametrize("how", ["copied", "renamed", "archived", "from inside"])
def test_an_archive_is_checked_wherever_it_lies(tiny, tmp_path, monkeypatch, how):
    place = tmp_path / "elsewhere"
    if how == "archived":
        with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as tar:
            tar.add("results")
        subprocess.run(["tar", "xzf", tmp_path / "a.tar.gz", "-C", tmp_path], check=True)
        path = tmp_path / "results"
    elif how == "from inside":
        path = tiny
        monkeypatch.chdir(tmp_path)
    else:
        path = place if how == "renamed" else place / "results"
        shutil.copytree("results", path)
        monkeypatch.chdir(tmp_path)
        shutil.rmtree(tiny)
    found = verify(path)
    assert found.wrong == [] and found.notes == []
    assert found.artifacts == 5


def test_one_artifact_is_checked_alone(tiny, capsys):
    folder = sorted(Path("results/stage2").rglob("manifest.json"))[0].parent
    assert main(["verify", str(folder)]) == 0
    assert "checked 1 artifacts, 3 files" in capsys.readouterr().out
    assert main(["verify", "results/stage2"]) == 0
    assert "checked 2 artifacts" in capsys.readouterr().out
    (folder / "metrics.csv").write_text("changed\n")
    assert main(["verify", str(folder / "metrics.csv")]) == 1
    said = capsys.readouterr().out
    assert f"wrong: {folder}: metrics.csv is damaged" in said


@pytest.mark.parametrize("pattern", ["subset.h5", "train.h5", "report.html", "tables/main.csv"])
def test_one_flipped_bit_anywhere_is_found(tiny, pattern):
    path = only("results", pattern)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    (line,) = verify(Path("results")).wrong
    assert pattern in line and "SHA-256" in line


def test_missing_and_added_files(tiny):
    path = only("results/features", "val.h5")
    path.unlink()
    (path.parent / "extra.txt").write_text("mine")
    found = verify(Path())
    assert len(found.wrong) == 1 and "val.h5 can't be read" in found.wrong[0]
    assert found.notes == [f"{path.parent}: extra.txt is no part of the artifact"]


def test_manifests_that_were_tampered_with(tiny):
    path = only("results/features", "manifest.json")
    values = json.loads(path.read_text())
    values["spec"]["code"] = "0123456789"
    path.write_text(json.dumps(values))
    assert verify(path.parent).wrong == [f"{path.parent}: manifest.json is damaged"]
    write_sealed(path.parent, values)
    (line,) = verify(path.parent).wrong
    assert "is not what the digest in its name stands for" in line
    # What it is called counts with the rest; those made from it say so as well.
    wrong = verify(Path("results")).wrong
    assert sum("is not the one that it was made from" in line for line in wrong) >= 2
    path.write_text("{")
    assert verify(path.parent).wrong == [f"{path.parent}: manifest.json is damaged"]


def test_an_artifact_under_another_name_or_seed(tiny):
    folder = only("results/stage2/mine/NCM", "manifest.json").parent
    folder.rename(folder.with_name("seed1"))
    (line,) = verify(folder.with_name("seed1")).wrong
    assert "is not what the digest" in line


def test_what_is_no_file_is_not_waited_for(tiny):
    path = only("results/stage2/mine/NCM", "metrics.csv")
    path.unlink()
    os.mkfifo(path)
    (line,) = verify(path.parent).wrong
    assert line == f"{path.parent}: metrics.csv is not a regular file"


def test_results_of_version_0_1_0(tiny):
    by_version_0_1_0()
    found = verify(Path("results"))
    assert found.wrong == [] and found.artifacts == 5
    assert all("made by an earlier version" in line for line in found.notes)
    path = only("results/stage2/mine/NCM", "metrics.csv")
    path.write_text("changed\n")
    (line,) = verify(Path("results")).wrong
    assert "metrics.csv is damaged" in line


def test_what_is_not_in_the_tree_is_only_noted(tiny, tmp_path):
    shutil.copytree("results/stage2", tmp_path / "part/results/stage2")
    found = verify(tmp_path / "part")
    assert found.wrong == []
    assert len(found.notes) == 2 and all("is not in this tree" in line for line in found.notes)
    only("results/experiments", "manifest.json").unlink()
    (Path("results/stage2/mine/ncm") / "0123456789/seed0").mkdir(parents=True, exist_ok=True)
    assert any("not finished" in line for line in verify(Path("results")).notes)


def test_results_made_again_that_came_out_the_same_are_fine(tiny):
    plan = plans.plan_of(tiny / "experiment.yaml")
    (cell,) = plan.of_kind("import")
    before = only("results/features", "manifest.json").read_text()
    assert plans.run_cell(cell) == 0
    assert only("results/features", "manifest.json").read_text() != before
    assert verify(Path("results")).wrong == []


@pytest.mark.parametrize("path", ["nowhere", "train.npz", "."])
def test_where_there_is_nothing_to_check(tmp_path, monkeypatch, capsys, path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.npz").write_bytes(b"")
    assert main(["verify", path]) == 2
    error = capsys.readouterr().err
    assert error.startswith("ltpipe: error: ") and error.count("\n") == 1


def test_checksums_inside_are_those_of_the_bytes(tiny):
    """The oracle: what `verify` relies on, computed by other means."""
    import hashlib

    for path in Path("results").rglob("manifest.json"):
        for name, value in json.loads(path.read_text())["outputs"].items():
            assert hashlib.sha256((path.parent / name).read_bytes()).hexdigest() == value
    with h5py.File(only("results/features", "train.h5")) as file:
        assert (
            zlib.crc32(np.ascontiguousarray(file["features"][()]).tobytes())
            == (file["features"].attrs["crc32"])
        )
