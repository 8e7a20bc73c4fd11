"""`ltpipe gc`: lists what no experiment file needs; removes it only when told, only there."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from ltpipe.artifacts.gc import Waste, find_waste, remove
from ltpipe.cli.program import main
from ltpipe.utils.errors import InputError
from tests import plans

CATALOGUE = ["--catalogue", str(plans.CATALOGUE)]


@pytest.fixture
def two(tiny) -> tuple[Path, Path]:
    """Two experiments: one has NCM and Linear, the other NCM with cosines, and its own report."""
    values = plans.changed(methods={"NCM": {"distance": "cosine"}}, experiment="other")
    del values["methods"]["Linear"]
    values["tables"]["main"]["rows"].pop()
    other = plans.write_experiment(tiny, values, "other.yaml")
    plans.run_plan(other)
    for kind, suffix in (("logs", ".log"), ("benchmarks", ".tsv")):
        for path in list(Path("results/stage2").rglob("manifest.json")):
            side = Path("results", kind, path.parent.relative_to("results")).as_posix() + suffix
            Path(side).parent.mkdir(parents=True, exist_ok=True)
            Path(side).write_text("text")
    return tiny / "experiment.yaml", other


def files(folder: str = "."):
    return {path for path in Path(folder).rglob("*") if path.is_file()}


def test_it_lists_and_removes_nothing_unasked(two, capsys):
    before = files()
    assert main(["gc", str(two[0]), *CATALOGUE]) == 0
    said = capsys.readouterr().out
    assert files() == before
    other = {cell.folder for cell in plans.plan_of(two[1]).of_kind("stage2")}
    listed = {line.split()[-1] for line in said.splitlines() if " artifact " in line}
    assert listed == other | {"results/experiments/other"}
    assert "--delete removes them" in said


def test_what_both_need_stays_and_the_rest_goes(two, capsys):
    assert main(["gc", *map(str, two), *CATALOGUE, "--delete"]) == 0
    assert "removed 0 items" in capsys.readouterr().out
    assert main(["gc", str(two[0]), *CATALOGUE, "--delete"]) == 0
    for cell in plans.plan_of(two[0]).artifacts.values():
        assert Path(cell.folder, "manifest.json").is_file()
    for cell in plans.plan_of(two[1]).of_kind("stage2"):
        assert not Path(cell.folder).exists()
        assert not Path(cell.folder).parent.exists()
        name = Path(cell.folder).relative_to("results")
        assert not Path("results/logs", f"{name}.log").exists()
        assert not Path("results/benchmarks", f"{name}.tsv").exists()
    assert len(list(Path("results/logs").rglob("*.log"))) == 2
    assert not Path("results/experiments/other").exists()
    assert main(["verify"]) == 0
    capsys.readouterr()
    assert main(["gc", str(two[0]), *CATALOGUE]) == 0
    assert "nothing to remove" in capsys.readouterr().out


def test_half_written_files_of_killed_runs(two):
    cell = plans.plan_of(two[0]).of_kind("import")[0]
    half = Path(cell.folder, ".train.h5.abcd.tmp")
    half.write_bytes(b"half")
    report = Path("results/experiments/.tiny.xyz")
    report.mkdir()
    waste = {item.path: item.what for item in find_waste(two, catalogue=plans.CATALOGUE)}
    assert waste == {half: "half-written", report: "half-written"}
    remove(find_waste(two, catalogue=plans.CATALOGUE), Path("results"))
    assert not half.exists() and not report.exists()


def test_other_peoples_files_are_left_alone(two, tmp_path):
    for name in ("results/notes.txt", "results/data/raw/cifar10/batch", "results/mine/a/b/c/d"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text("mine")
    outside = tmp_path / "outside/0123456789/seed0"
    outside.mkdir(parents=True)
    (outside / "precious").write_text("mine")
    Path("results/stage2/mine/linked").symlink_to(tmp_path / "outside")
    assert main(["gc", str(two[0]), *CATALOGUE, "--delete"]) == 0
    assert (outside / "precious").exists()
    for name in ("results/notes.txt", "results/data/raw/cifar10/batch", "results/mine/a/b/c/d"):
        assert Path(name).exists()
    assert Path("train.npz").exists() and two[1].exists()


def test_nothing_outside_is_ever_removed(two, tmp_path):
    outside = tmp_path / "features"
    shutil.move("results/stage2", outside)
    Path("results/stage2").symlink_to(outside)
    waste = find_waste(two[:1], catalogue=plans.CATALOGUE)
    before = files(str(outside))
    assert any("stage2" in str(item.path) for item in waste)
    with pytest.raises(InputError, match="outside"):
        remove(waste, Path("results"))
    assert files(str(outside)) == before
    assert Path("results/experiments/other").exists()
    for path in (tmp_path, Path("results").resolve(), Path("train.npz")):
        with pytest.raises(InputError, match="outside"):
            remove([Waste(path, 0, "artifact")], Path("results"))
    assert Path("train.npz").exists()


def test_not_while_a_snakemake_runs(two, capsys):
    lock = Path(".snakemake/locks/0.output.lock")
    lock.parent.mkdir(parents=True)
    lock.touch()
    before = files()
    assert main(["gc", str(two[0]), *CATALOGUE, "--delete"]) == 2
    assert "a Snakemake runs here" in capsys.readouterr().err
    assert files() == before


def test_an_experiment_that_cannot_be_read_stops_everything(two, capsys):
    before = files()
    two[1].write_text("experiment: [")
    assert main(["gc", *map(str, two), *CATALOGUE, "--delete"]) == 2
    assert "other.yaml" in capsys.readouterr().err
    assert main(["gc", str(two[0]), *CATALOGUE, "--delete", "--results", "/"]) == 2
    assert files() == before
