"""`ltpipe gc`: lists what no experiment file needs; removes it only when told, only there."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest

from ltpipe.artifacts.gc import Survey, Waste, find_waste, remove
from ltpipe.cli.program import main
from ltpipe.plan.workload import load_workload
from ltpipe.utils.errors import InputError
from ltpipe.utils.lock import held
from tests import plans
from tests.artifacts.older import by_older_code, pretend, write_training

CATALOGUE = ["--catalogue", str(plans.CATALOGUE)]


def survey(experiments, **options) -> Survey:
    return find_waste(experiments, catalogue=plans.CATALOGUE, **options)


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
    report = plans.plan_of(two[1]).report.folder
    assert listed == other | {report}
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
    report = Path("results/experiments/tiny/.0123456789.tmp")
    report.mkdir()
    found = survey(two).waste
    assert {item.path: item.what for item in found} == {
        half: "half-written",
        report: "half-written",
    }
    remove(found, Path("results"))
    assert not half.exists() and not report.exists()


@pytest.mark.parametrize("side", ["plans", "fingerprints", "logs", "benchmarks"])
def test_half_written_files_beside_the_artifacts_once_they_are_old(two, side):
    half = Path("results", side, "deep/.x.json.abcdefgh.tmp")
    half.parent.mkdir(parents=True)
    half.write_bytes(b"half")
    assert survey(two).waste == [], "a run that plans now may be writing it"
    long_ago = time.time() - 7200
    os.utime(half, (long_ago, long_ago))
    found = survey(two).waste
    assert [(item.path, item.what) for item in found] == [(half, "half-written")]
    remove(found, Path("results"))
    assert not half.exists()


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
    waste = survey(two[:1]).waste
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


def test_not_while_a_run_is_at_work(two, capsys):
    before = files()
    with held(Path("results")):
        assert main(["gc", str(two[0]), *CATALOGUE, "--delete"]) == 2
    assert "a run is at work there already" in capsys.readouterr().err
    assert files() - before <= {Path("results/.lock"), Path("results/.owner")}
    assert main(["gc", str(two[0]), *CATALOGUE, "--delete"]) == 0


def test_reports_but_the_newest_and_the_one_that_is_needed(tiny):
    experiment = tiny / "experiment.yaml"
    older = Path(plans.plan_of(experiment).report.folder)
    values = {**plans.EXPERIMENT, "title": "Second"}
    newer = plans.plan_of(plans.write_experiment(tiny, values)).report
    assert plans.run_cell(newer) == 0
    assert main(["publish", newer.folder]) == 0
    mark = Path("results/experiments/tiny/published")
    mark.mkdir()
    for folder in (older, Path(newer.folder)):
        (mark / folder.name).touch()
    values["title"] = "Third"
    # The one that is needed is not there yet: the newest stays until it is.
    third = plans.plan_of(plans.write_experiment(tiny, values)).report
    (item,) = survey([experiment]).waste
    assert item.path == older
    remove([item], Path("results"))
    assert [path.name for path in mark.iterdir()] == [Path(newer.folder).name]
    assert (Path("results/experiments/tiny/latest") / "report.html").is_file()
    assert plans.run_cell(third) == 0 and main(["publish", third.folder]) == 0
    assert [item.path for item in survey([experiment]).waste] == [Path(newer.folder)]
    # An experiment that nobody names goes with its link and its mark.
    other = plans.write_experiment(tiny, {**values, "experiment": "other"}, "other.yaml")
    remove(survey([other]).waste, Path("results"))
    assert not Path("results/experiments").exists()


def test_plans_but_the_last_and_logs_that_belong_to_nothing(tiny):
    for number, name in enumerate(("a", "b", "c")):
        path = Path(f"results/plans/{name}.json")
        path.parent.mkdir(exist_ok=True)
        path.write_text("{}")
        os.utime(path, (number, number))
    needed = next(iter(plans.plan_of(tiny / "experiment.yaml").artifacts))
    inside = Path(needed).relative_to("results").as_posix()
    names = {
        f"logs/{inside}.log": False,
        "logs/stage2/mine/NCM/0123456789/seed0.log": True,
        "logs/experiments/tiny/0123456789.published.log": True,
        "benchmarks/features/mine/net/0123456789.tsv": True,
        "logs/mine.log": False,
        "benchmarks/stage2/notes.tsv": False,
    }
    for name in names:
        Path("results", name).parent.mkdir(parents=True, exist_ok=True)
        Path("results", name).touch()
    expected = {Path("results", name) for name, is_waste in names.items() if is_waste}
    expected |= {Path("results/plans/a.json"), Path("results/plans/b.json")}
    assert {item.path for item in survey([tiny / "experiment.yaml"]).waste} == expected


def test_what_is_needed_where_the_data_are_absent(tiny):
    """Without the data and any record of them, the digest of what is needed can't be known."""
    for path in ("train.npz", "test.npz"):
        Path(path).unlink()
    assert survey([tiny / "experiment.yaml"]).waste == []
    shutil.rmtree("results/fingerprints")
    assert survey([tiny / "experiment.yaml"]).waste == []


def test_superseded_trainings_are_kept_with_what_they_are_made_from(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    path = write_training(tmp_path)
    needed = load_workload(path, plans.CATALOGUE)
    (training,) = needed.of_kind("stage1")
    for item in needed.artifacts.values():
        pretend(item)
    moved = by_older_code()
    gone = {old for new, old in moved.items() if "/stage2/" in new or "/features/" in new}
    found = survey([path])
    assert {item.path.as_posix() for item in found.waste} == gone
    assert [place.name for place in found.superseded] == [moved[training.folder]]
    assert main(["gc", str(path), *CATALOGUE]) == 0
    assert "kept: 1 superseded trainings" in capsys.readouterr().out
    everything = survey([path], superseded=True)
    assert {item.path.as_posix() for item in everything.waste} == set(moved.values())
    # Trainings under names that nobody asks for are waste like the rest.
    other = write_training(tmp_path, backbone="other")
    assert {item.path.as_posix() for item in survey([other]).waste} == set(moved.values())
    # Once adopted, its files are there under another name.
    assert main(["adopt", str(path), *CATALOGUE]) == 0
    assert survey([path]).superseded == []
    assert {item.path.as_posix() for item in survey([path]).waste} == set(moved.values())


def test_an_experiment_that_cannot_be_read_stops_everything(two, capsys):
    before = files()
    two[1].write_text("experiment: [")
    assert main(["gc", *map(str, two), *CATALOGUE, "--delete"]) == 2
    assert "other.yaml" in capsys.readouterr().err
    assert main(["gc", str(two[0]), *CATALOGUE, "--delete", "--results", "/"]) == 2
    assert files() == before
