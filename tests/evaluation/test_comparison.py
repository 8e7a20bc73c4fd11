"""Comparisons over experiments, against scipy's paired t test."""

from __future__ import annotations

import math
import re

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from ltpipe.artifacts.manifest import write_manifest
from ltpipe.cli.program import main
from ltpipe.evaluation.comparison import (
    arranged,
    compare,
    read_experiments,
    tally,
    to_markdown,
)
from ltpipe.evaluation.draws import crossed_interval
from ltpipe.utils.errors import InputError

EVIL = "<b>A</b>"
# data set, method, seed -> accuracy; B has no seed 3, C is on one data set with one seed.
VALUES = {
    ("one", EVIL): {0: 0.50, 1: 0.55, 2: 0.53, 3: 0.58},
    ("one", "B"): {0: 0.61, 1: 0.64, 2: 0.66},
    ("one", "C"): {2: 0.40},
    ("two", EVIL): {0: 0.30, 1: 0.31, 2: 0.29},
    ("two", "B"): {0: 0.30, 1: 0.33, 2: 0.26},
}


def write_experiment(base, name, chosen, digest="d"):
    """Leave a finished experiment as `ltpipe report` does: metrics, and the report's manifest."""
    results = []
    for (dataset, method), seeds in chosen.items():
        for seed, value in seeds.items():
            row = {"dataset": dataset, "method": method, "label": method, "kind": "ncm"}
            folder = f"results/stage2/{dataset}/{len(method)}{method[-1]}/{digest}/seed{seed}"
            results.append({**row, "seed": seed, "folder": folder})
            (base / folder).mkdir(parents=True, exist_ok=True)
            rows = [
                (0, "{}", "last", "accuracy", "", value),
                (0, "{}", "last", "nll", "", 1 - value),
                (0, "{}", "last", "class_accuracy", 0, 1.0),
                (0, "{}", "best_test", "accuracy", "", 0.99),
            ]
            columns = ["point", "parameters", "protocol", "metric", "class", "value"]
            pd.DataFrame(rows, columns=columns).to_csv(base / folder / "metrics.csv", index=False)
    spec = {
        "kind": "report",
        "experiment": name,
        "results": results,
        "tables": {},
        "datasets": {
            name: {"folder": f"results/data/{name}/0", "label": name}
            for name in dict.fromkeys(dataset for dataset, _ in chosen)
        },
    }
    folder = base / "results/experiments" / name / "0123456789"
    folder.mkdir(parents=True)
    write_manifest(folder, spec=spec, modules={}, inputs={}, run_info={})
    return folder


@pytest.fixture
def records(tmp_path):
    return read_experiments([write_experiment(tmp_path, "x", VALUES)])


@pytest.mark.parametrize("level", [0.8, 0.95, 0.99])
def test_intervals_are_scipys(level):
    stream = np.random.default_rng(0)
    a, b = stream.normal(size=(2, 7))
    wanted = stats.ttest_rel(a, b).confidence_interval(level)
    assert crossed_interval(np.atleast_2d(a - b), level) == pytest.approx(
        (wanted.low, wanted.high), rel=1e-12
    )


def test_differences_pair_the_seeds_that_both_have(records):
    found = compare(records)
    assert found.reference == EVIL
    table = found.table.set_index(["dataset", "method"])
    row = table.loc[("one", "B")]
    wanted = stats.ttest_rel([0.61, 0.64, 0.66], [0.50, 0.55, 0.53])
    interval = wanted.confidence_interval(0.95)
    assert row["pairs"] == 3 and row["seeds"] == 3
    assert row["difference"] == pytest.approx(np.mean([0.11, 0.09, 0.13]))
    assert (row["low"], row["high"]) == pytest.approx((interval.low, interval.high))
    assert table.loc[("one", EVIL), "mean"] == pytest.approx(0.54)
    assert math.isnan(table.loc[("one", EVIL), "difference"])


def test_one_common_seed_has_a_difference_and_no_interval(records):
    found = compare(records)
    row = found.table.set_index(["dataset", "method"]).loc[("one", "C")]
    assert row["pairs"] == 1 and row["difference"] == pytest.approx(-0.13)
    assert math.isnan(row["low"]) and math.isnan(row["high"])
    text = to_markdown(found)
    assert "-13.0 (one seed)" in text and "With one common seed there is no interval." in text
    assert crossed_interval(np.array([[0.1]])) == pytest.approx((math.nan, math.nan), nan_ok=True)


def test_wins_and_losses_are_counted(records):
    counts = tally(compare(records)).set_index("method")
    # Better on "one", clearly; on "two" the seeds are equal, better, worse, and the mean is worse.
    assert counts.loc["B"].to_dict() == {
        "datasets": 2,
        "wins": 1,
        "losses": 1,
        "clear_wins": 1,
        "clear_losses": 0,
        "better": 4,
        "worse": 1,
        "equal": 1,
    }
    assert counts.loc["C", "losses"] == 1 and counts.loc["C", "clear_losses"] == 0


def test_of_a_metric_that_should_be_low_the_lower_wins(records):
    counts = tally(compare(records, "nll")).set_index("method")
    assert counts.loc["B", "clear_wins"] == 1 and counts.loc["B", "better"] == 4


def test_bold_marks_intervals_without_zero(records):
    _, differences = arranged(compare(records))
    cells = dict(differences.rows)
    assert [cell.best for cell in cells["B"]] == [True, False]
    assert cells["C"][1].text == ""


def test_runs_that_two_experiments_share_count_once(tmp_path):
    paths = [write_experiment(tmp_path, name, VALUES) for name in ("x", "y")]
    pd.testing.assert_frame_equal(read_experiments(paths), read_experiments(paths[:1]))


def test_one_name_for_two_methods_is_told_apart(tmp_path):
    first = write_experiment(tmp_path, "x", VALUES)
    second = write_experiment(tmp_path, "y", {("one", "B"): {0: 0.2, 1: 0.3}}, digest="e")
    rows = set(read_experiments([first, second])["row"])
    assert rows == {EVIL, "B [x]", "B [y]", "C", "B"}


def test_the_command_writes_tables_and_a_page_that_stands_alone(tmp_path, capsys):
    folder = write_experiment(tmp_path, "x", VALUES)
    output = tmp_path / "out"
    assert main(["compare", str(folder), "--reference", "B", "--output", str(output)]) == 0
    assert "Difference to B" in capsys.readouterr().out
    table = pd.read_csv(output / "comparison.csv")
    assert len(table) == len(VALUES)
    page = (output / "comparison.html").read_text()
    assert EVIL not in page and "&lt;b&gt;A" in page
    assert not re.findall(r"https?:|src=", page)
    for link in re.findall(r'href="([^"]+)"', page):
        assert f'id="{link[1:]}"' in page if link[0] == "#" else (output / link).is_file()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reference": "b"}, "no method is called 'b'.*B"),
        ({"metric": "acuracy"}, "unknown metric.*accuracy"),
        ({"metric": "mcc"}, "has the metric 'mcc'"),
        ({"level": 1.0}, "level"),
    ],
)
def test_bad_requests_are_named(records, options, message):
    with pytest.raises(InputError, match=message):
        compare(records, **options)


def test_an_experiment_that_has_not_been_run_is_named(tmp_path):
    with pytest.raises(InputError, match="no finished experiment"):
        read_experiments([tmp_path])
