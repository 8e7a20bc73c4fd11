"""Intervals over draws and seeds: simulated coverage, and closed forms at the edges."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from scipy.stats import t

from ltpipe.config.experiment import resolve
from ltpipe.evaluation.comparison import compare
from ltpipe.evaluation.draws import crossed_interval
from ltpipe.plan.layout import build_plan
from ltpipe.utils.errors import InputError
from tests.plans import CATALOGUE


def coverage(draws, seeds, spread_draws, spread_seeds, interval, runs=1500):
    """How often an interval of 95 % holds the true mean of simulated values."""
    stream = np.random.default_rng(draws + 100 * seeds)
    shape = (runs, draws, seeds)
    values = stream.normal(size=shape)
    values += spread_draws * stream.normal(size=(runs, draws, 1))
    values += spread_seeds * stream.normal(size=(runs, 1, seeds))
    ends = np.array([interval(one) for one in values])
    return float(((ends[:, 0] <= 0) & (ends[:, 1] >= 0)).mean())


@pytest.mark.parametrize(
    ("draws", "seeds", "of_draws", "of_seeds"),
    [(20, 5, 1.0, 0.0), (20, 5, 0.0, 0.0), (5, 3, 2.0, 0.0), (20, 5, 2.0, 0.5), (3, 10, 1.0, 1.0)],
)
def test_intervals_hold_the_mean_as_often_as_they_say(draws, seeds, of_draws, of_seeds):
    found = coverage(draws, seeds, of_draws, of_seeds, crossed_interval)
    # 0.0056 is the standard error of 1,500 runs at 95 %; a little too long is no fault.
    assert found > 0.95 - 4 * 0.0056


def test_seeds_of_draws_are_no_repetitions():
    def naive(values):
        flat = values.ravel()
        half = t.ppf(0.975, len(flat) - 1) * flat.std(ddof=1) / math.sqrt(len(flat))
        return flat.mean() - half, flat.mean() + half

    assert coverage(10, 5, 2.0, 0.0, naive) < 0.8
    assert coverage(10, 5, 2.0, 0.0, crossed_interval) > 0.92


def test_one_draw_or_one_seed_gives_students_interval():
    values = np.array([0.5, 0.7, 0.6, 0.4])
    expected = t.interval(0.9, 3, values.mean(), values.std(ddof=1) / 2)
    for shaped in (values[None], values[:, None]):
        np.testing.assert_allclose(crossed_interval(shaped, 0.9), expected)
    assert all(math.isnan(end) for end in crossed_interval(np.array([[1.0]])))


def test_an_interval_of_two_ways_by_hand():
    values = np.array([[1.0, 2.0, 4.0], [5.0, 4.0, 9.0], [2.0, 2.0, 5.0], [9.0, 10.0, 15.0]])
    mean = sum(map(sum, values.tolist())) / 12
    ms = [
        3 * sum((row.mean() - mean) ** 2 for row in values) / 3,
        4 * sum((column.mean() - mean) ** 2 for column in values.T) / 2,
        sum(
            (values[d, s] - values[d].mean() - values[:, s].mean() + mean) ** 2
            for d in range(4)
            for s in range(3)
        )
        / 6,
    ]
    total = ms[0] + ms[1] - ms[2]
    freedom = total**2 / (ms[0] ** 2 / 3 + ms[1] ** 2 / 2 + ms[2] ** 2 / 6)
    half = t.ppf(0.975, freedom) * math.sqrt(total / 12)
    np.testing.assert_allclose(crossed_interval(values), (mean - half, mean + half))
    missing = values.copy()
    missing[1, 2] = np.nan
    np.testing.assert_allclose(crossed_interval(missing), crossed_interval(values[:, :2]))


FILE = {
    "experiment": "drawn",
    "seeds": [0, 1],
    "datasets": {
        "digits-{imbalance}": {
            "use": "digits-lt",
            "sweep": {"imbalance": [10, 20]},
            "subset_seeds": [3, 4, 5],
        }
    },
    "methods": {"NCM": {"use": "ncm", "backbones": {"features": "resnet8-ce"}}},
    "tables": {"main": {"rows": [{"method": "NCM"}]}},
}


def test_draws_are_data_sets_of_their_own_and_one_in_tables():
    experiment = resolve(FILE, CATALOGUE)
    assert len(experiment.datasets) == 6
    assert experiment.datasets["digits-10-draw4"].settings.subset_seed == 4
    spec = build_plan(experiment).report.spec
    assert (
        list(spec["datasets"])
        == spec["tables"]["main"]["datasets"]
        == [
            "digits-10",
            "digits-20",
        ]
    )
    runs = {(row["dataset"], row["draw"], row["seed"]) for row in spec["results"]}
    assert len(runs) == len({row["folder"] for row in spec["results"]}) == 12
    for wrong, message in (
        ({"subset_seeds": []}, "different seeds"),
        ({"subset_seeds": [1], "subset_seed": 2}, "one of them"),
    ):
        with pytest.raises(InputError, match=message):
            resolve({**FILE, "datasets": {"digits": {"use": "digits-lt", **wrong}}}, CATALOGUE)


def test_comparisons_pair_runs_of_one_draw_and_seed():
    stream = np.random.default_rng(0)
    rows = []
    for draw in range(6):
        shift = stream.normal()
        for seed in range(3):
            for row, gain in (("a", 0.0), ("b", 0.1)):
                value = shift + gain + 0.01 * stream.normal()
                rows.append(("d", row, draw, seed, "accuracy", value, "e", "last"))
    columns = ["dataset", "row", "draw", "seed", "metric", "value", "experiment", "protocol"]
    found = compare(pd.DataFrame(rows, columns=columns)).table
    row = found[found["method"] == "b"].iloc[0]
    assert row["pairs"] == 18 and 0.08 < row["low"] < row["high"] < 0.12
