"""The scripts run at tiny sizes; what they compute from times and sizes is right. No time is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

pytestmark = pytest.mark.heavy

HERE = Path(__file__).parent
FOLDER = str(HERE)


@pytest.fixture(autouse=True, scope="module")
def scripts():
    sys.path.insert(0, FOLDER)
    yield
    sys.path.remove(FOLDER)


def printed_by(script: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, str(HERE / script), *arguments],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_flops_of_known_networks():
    import work

    from ltpipe.models.resnet import resnet32

    # 68,861,952 multiply-adds of convolutions, and 64 x 10 of the head.
    flops = work.forward_flops(resnet32(10), (3, 32, 32))
    assert flops == 2 * (68_861_952 + 640)
    assert work.training_flops(resnet32(10), (3, 32, 32)) == 3 * flops
    small = torch.nn.Sequential(
        torch.nn.Conv2d(2, 4, 3), torch.nn.Flatten(), torch.nn.Linear(16, 5)
    )
    assert work.forward_flops(small, (2, 4, 4)) == 2 * (4 * 2 * 2 * 2 * 9 + 16 * 5)
    assert small.training


def test_what_a_step_moves_and_computes():
    import work

    # By hand: two products of 3 x 4 x 5, 2 operations a multiply-add.
    assert work.linear_step_flops(3, 4, 5) == 240
    assert work.linear_step_flops(3, 4, 5, models=2) == 480
    # Weight: one read, gradient: written and read, weight and momentum: read and written.
    assert work.linear_step_bytes(3, 4, 5) == 4 * (7 * 20 + 4 * 15)
    assert work.unfused_step_bytes(3, 4, 5) == 4 * (13 * 20 + 4 * 15)
    # Two layers of 2 x 3, 3 x 3 and 3 x 4, and distances to 7 centres.
    assert work.flow_step_flops(1, 2, 3, 7) == 3 * 2 * (2 * (6 + 9 + 12) + 14)
    assert work.gather_bytes(8) == 64
    assert work.crop_bytes(32) == 6144
    assert work.clustering_bytes(2, 3, 5) == 4 * (20 + 30)


def test_the_share_of_a_ceiling_and_ratios():
    from measure import Result, Run

    run_ = Run(quick=False, full=False, limits={"memory copy": 100.0})
    rate = Result("crop and flip", "images/s", 5.0, 2.0, ceiling="memory copy", work=10.0)
    assert run_.share(rate) == 0.5
    assert rate.ratio == 2.5
    assert rate.goal == 6.0
    assert Result("DLSA filter step", "steps/s", 6.0, 2.0).ratio == 3
    # Of seconds fewer are better.
    assert Result("a job", "s/job", 0.5, 2.0).ratio == 4
    alone = Result("whole", "s", 3.0)
    assert alone.ratio is None
    assert alone.goal is None
    assert run_.share(alone) is None


@pytest.mark.parametrize("exponent", [0.0, 1.0, 2.5])
def test_the_slope_of_a_power_law(exponent):
    import scale

    sizes = [10, 30, 200, 5000]
    assert scale.slope(sizes, [7 * size**exponent for size in sizes]) == pytest.approx(exponent)
    noisy = [3.0, 8.0, 60.0, 1500.0]
    fitted = np.polyfit(np.log(sizes), np.log(noisy), 1)[0]
    assert scale.slope(sizes, noisy) == pytest.approx(fitted)


def test_the_clustering_peer_finds_the_same_subclasses():
    import peers

    from ltpipe.stage1.cws.clustering import Clustering

    numbers = [3, 2, 1]
    loop, product = peers.LoopClustering(numbers), Clustering(numbers, 4)
    draws = torch.Generator().manual_seed(0)
    for _ in range(5):
        features = torch.randn(20, 4, generator=draws)
        labels = torch.randint(3, (20,), generator=draws)
        assert torch.equal(loop.assign(features, labels), product.assign(features, labels))


def test_rows_are_added_and_moves_are_shown(tmp_path):
    import history
    from measure import Result

    path = tmp_path / "kept.csv"
    first = history.table_of([Result("loop", "x/s", 4.0, 2.0)], [None], "default")
    history.append(path, first)
    before = path.read_text()
    second = [Result("loop", "x/s", 9.0, 3.0), Result("whole", "s", 7.0)]
    history.append(path, history.table_of(second, [0.5, None], "default"))
    assert path.read_text().startswith(before)
    table = pd.read_csv(path)
    assert table["ratio"].tolist()[:2] == [2, 3]
    version = table["version"][0]
    day = table["date"][0][:10]
    processor = table["machine"][0].split(",")[0]
    assert history.moves(table) == [
        f"loop, {processor}: 2.00 ({day}, {version}) -> 3.00 ({day}, {version})",
        f"whole, {processor}: 7.00 s ({day}, {version})",
    ]
    elsewhere = table.assign(machine=["first machine", "second machine", "second machine"])
    assert history.moves(elsewhere)[:2] == [
        f"loop, first machine: 2.00 ({day}, {version})",
        f"loop, second machine: 3.00 ({day}, {version})",
    ]
    path.write_text("name,ratio\nloop,2\n")
    with pytest.raises(SystemExit, match="other columns"):
        history.append(path, first)


def test_the_kept_history_can_be_read_and_added_to():
    import history
    import run as table

    history.check(table.RESULTS)
    assert any(
        line.startswith("stage one, ResNet-32, Intel(R) Xeon(R) Processor: 2.49")
        for line in history.moves(pd.read_csv(table.RESULTS))
    )


def test_one_table_of_several_suites(tmp_path, monkeypatch, capsys):
    import run as table

    kept = tmp_path / "kept.csv"
    suites = ["augmentation", "clustering", "large", "write", "read"]
    arguments = ["run.py", "--quick", "--csv", str(kept), "--only", *suites]
    monkeypatch.setattr(sys, "argv", arguments)
    table.main()
    printed = capsys.readouterr().out
    rows = pd.read_csv(kept)
    assert all(name in printed for name in rows["name"])
    assert (rows["product"] > 0).all()
    ceilings = rows["name"].str.startswith("ceiling: ")
    assert (rows[~ceilings]["ratio"].dropna() > 0).all()
    assert rows["ratio"].isna().equals(rows["peer"].isna())
    assert (rows[~ceilings]["share"] > 0).all()
    known = {name.removeprefix("ceiling: ") for name in rows[ceilings]["name"]}
    assert set(rows[~ceilings]["ceiling"]) <= known
    assert rows["extent"].eq("quick").all()
    monkeypatch.setattr(sys, "argv", ["run.py", "--history", "--csv", str(kept)])
    table.main()
    assert "crop and flip [quick], " in capsys.readouterr().out


def test_every_slope_is_measured_at_tiny_sizes(tmp_path):
    printed_by("scale.py", "--tiny", "--output", str(tmp_path))
    rows = pd.read_csv(tmp_path / "scaling.csv")
    assert (rows.groupby(["loop", "axis"]).size() >= 4).all()
    assert (rows["seconds"] > 0).all()
    axes = rows.groupby("loop")["axis"].unique().map(set).to_dict()
    assert axes["stage two, one epoch"] == {
        "images",
        "classes",
        "dimensions",
        "views",
        "models",
    }
    assert "82 GB" in (tmp_path / "scaling.md").read_text()


def test_every_loop_is_profiled():
    printed = printed_by("profiling.py", "--tiny", "--top", "3")
    for name in ("training", "extraction", "sweep", "large", "filter", "ecvl", "clustering"):
        assert f"{name}: " in printed
    assert "aten::bmm" in printed


def test_goals_are_those_of_the_kind_of_processor(monkeypatch):
    import measure
    from measure import Result

    row = Result("DLSA filter step", "steps/s", 11.0, 1.0)
    alone = Result("stage one, compiled", "images/s", 1.0, 1.0)
    for kind, goals in (
        ("amx", (15.0, 2.7)),
        ("avx512_bf16", (10.0, None)),
        ("none", (10.0, None)),
    ):
        monkeypatch.setattr(measure, "units", lambda kind=kind: kind)
        assert (row.goal, alone.goal) == goals


@pytest.mark.slow
def test_every_stage_of_images_is_measured(tmp_path):
    page = tmp_path / "page.md"
    photos = str(tmp_path / "photos")
    printed_by("images.py", "--images", "24", "--folder", photos, "--output", str(page))
    stages = [line for line in page.read_text().splitlines() if line.startswith("| ")]
    assert len([line for line in stages if line.count("|") == 7]) == 8
    assert "times the peer" in page.read_text()


def test_the_short_jobs_differ_in_their_optimizer_alone():
    import short_job

    said = [printed_by("short_job.py", "--form", form).splitlines() for form in short_job.FORMS]
    assert said[0][0].startswith("block 1: ")
    assert said[0][:-1] == said[1][:-1]
    assert all(float(lines[-1]) > 0 for lines in said)


@pytest.mark.workflow
def test_a_failing_workflow_says_why(tmp_path):
    import runs

    (tmp_path / "bad.yaml").write_text("experiment: bad\n")
    with pytest.raises(RuntimeError, match="experiment file"):
        runs.snakemake(tmp_path, tmp_path / "bad.yaml", "-n")
