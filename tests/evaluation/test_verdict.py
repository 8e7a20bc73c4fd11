"""Which method to take: intervals of paired differences against the bootstrap and closed forms."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from ltpipe.cli.program import main
from ltpipe.evaluation.metrics import evaluate, group_of_classes
from ltpipe.evaluation.records import read_records
from ltpipe.evaluation.tables import build_table, wide
from ltpipe.evaluation.verdict import (
    Difference,
    Judge,
    Verdict,
    _chosen,
    in_words,
    mark_winners,
    sample_weights,
    verdicts,
)
from ltpipe.stage2.core.results import read_predictions
from tests import plans


def test_weights_of_samples_give_the_metrics():
    stream = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2, 4], [30, 7, 3, 1])
    scores = stream.random((len(labels), 5))
    counts = [200, 60, 30, 10, 5]
    found = evaluate(scores, labels, counts)
    right = scores.argmax(1) == labels
    groups = np.array(group_of_classes(counts, "thresholds"))
    everything = np.ones(5, dtype=bool)
    for metric, classes in (
        ("accuracy", everything),
        ("balanced_accuracy", everything),
        ("many", groups == "many"),
        ("medium", groups == "medium"),
        ("few", groups == "few"),
    ):
        weights = sample_weights(labels, classes, metric)
        assert weights @ right == pytest.approx(found[metric], abs=1e-12)


@pytest.fixture
def judged(tiny):
    """The tiny experiment with two seeds: its report's spec, records, table and judge."""
    plan = plans.run_plan(plans.write_experiment(tiny, plans.changed(seeds=[0, 1]), "two.yaml"))
    spec = plan.report.spec
    records = read_records(spec)
    judge = Judge(spec, tiny)
    table = build_table(records, spec["tables"]["main"], spec["datasets"], tiny)
    return spec, records, table, judge


def rows_of(table, metric):
    part = table[table["metric"] == metric].set_index("label")
    return part.loc["NCM"], part.loc["Linear"]


def per_sample(spec, metric):
    """Return labels and the mean difference in right answers of each test sample."""
    hits = {}
    for row in spec["results"]:
        found = read_predictions(plans.Path(row["folder"]))
        hits[row["method"], row["seed"]] = (found.predicted[0] == found.labels).astype(float)
    differences = [hits["NCM", seed] - hits["Linear", seed] for seed in (0, 1)]
    return found.labels, np.mean(differences, axis=0)


@pytest.mark.parametrize("metric", ["accuracy", "few"])
def test_the_interval_is_that_of_seeds_and_of_samples_together(metric, judged):
    spec, records, table, judge = judged
    one, other = rows_of(table, metric)
    found = judge.difference(records, one, other, metric)
    runs = records[(records["metric"] == metric)].pivot_table("value", "seed", "method")
    differences = (runs["NCM"] - runs["Linear"]).to_numpy()
    assert found.mean == pytest.approx(differences.mean())
    half_of_seeds = stats.t.ppf(0.975, 1) * differences.std(ddof=1) / np.sqrt(2)
    labels, values = per_sample(spec, metric)
    # The bootstrap of test samples, class by class where classes count alike.
    stream = np.random.default_rng(0)
    if metric == "few":
        shots = np.array(group_of_classes([40, 20, 10, 5], "ranks"))
        strata = [np.flatnonzero(labels == c) for c in np.flatnonzero(shots == "few")]
    else:
        strata = [np.arange(len(labels))]
    means = np.mean([stream.choice(values[s], (20_000, len(s))).mean(1) for s in strata], axis=0)
    # It divides by n where the estimate divides by n - 1.
    size = len(strata[0])
    half_of_samples = stats.norm.ppf(0.975) * means.std() * np.sqrt(size / (size - 1))
    expected = np.hypot(half_of_seeds, half_of_samples)
    assert (found.high - found.low) / 2 == pytest.approx(expected, rel=0.03, abs=1e-9)


def test_only_a_clear_winner_is_marked(judged, monkeypatch):
    _, records, table, judge = judged
    for difference, clear in (
        (Difference(0.2, 0.1, 0.3), True),
        (Difference(0.2, -0.1, 0.5), False),
    ):
        monkeypatch.setattr(judge, "difference", lambda *_, found=difference: found)
        marked = mark_winners(judge, records, table)
        accuracy = marked[marked["metric"] == "accuracy"]
        assert accuracy["winner"].sum() == clear
        best = accuracy.loc[accuracy["mean"].idxmax(), "label"]
        cells = dict(wide(marked).rows)
        assert cells[best][0].best == clear
        assert not any(
            cell.best for label, row in cells.items() if label != best for cell in row[:1]
        )


def test_the_advice_names_the_best_its_lead_and_its_equals(judged):
    spec, records, table, judge = judged
    (text,) = verdicts(judge, records, table, spec["seeds"])
    assert text.startswith("Take ") and "32 test samples" in text and "2 seeds" in text
    clear = Verdict("d", "accuracy", "A", "B", Difference(0.05, 0.02, 0.08), None, None, [])
    assert in_words(clear, "accuracy", 400, [0]).startswith(
        "Take A: it is +5.0 [+2.0, +8.0] points of accuracy above B, the next best. Brackets"
    )
    unclear = Verdict(
        "d",
        "few",
        "A",
        "B",
        Difference(0.01, -0.02, 0.04),
        "CE",
        Difference(0.2, 0.1, 0.3),
        ["B", "C"],
    )
    text = in_words(unclear, "few", 400, [0, 1, 2])
    assert "whichever of A, B, C" in text and "Beside CE it gains +20.0 [+10.0, +30.0]" in text


def test_held_out_samples_choose_whatever_the_test_set_says(judged, monkeypatch):
    spec, records, table, judge = judged
    ncm, linear = rows_of(table, "accuracy")
    worse = min(ncm, linear, key=lambda row: row["mean"])
    scores = {"NCM": 0.2, "Linear": 0.2, worse["method"]: 0.9}

    def held_out(row):
        index = pd.MultiIndex.from_product([[0], [0, 1]], names=["draw", "seed"])
        return pd.Series(scores[row["method"]], index)

    monkeypatch.setattr(judge, "held_out", held_out)
    (text,) = verdicts(judge, records, table, spec["seeds"])
    assert text.startswith(
        f"Take {worse.name}: of 2 methods it is the best on held-out training samples (mean "
        f"class accuracy 90.0 %); on the test set its accuracy is "
        f"{100 * worse['mean']:.1f} %. Points there:"
    )
    # A method that chose nothing by them is not in the choice, which then has one row to take.
    scores.pop(worse["method"])
    monkeypatch.setattr(judge, "held_out", lambda row: held_out(ncm)[:0])
    (text,) = verdicts(judge, records, table, spec["seeds"])
    assert "held-out" not in text


def test_each_draw_chooses_for_itself():
    """Two draws of two seeds: A leads the mean on held-out samples, B in the second draw."""
    index = pd.MultiIndex.from_product([[0, 1], [0, 1]], names=["draw", "seed"])
    held_out = {"A": [0.9, 0.9, 0.6, 0.6], "B": [0.5, 0.5, 0.7, 0.7], "C": []}
    tested = {"A": [0.80, 0.82, 0.70, 0.70], "B": [0.60, 0.60, 0.74, 0.76], "C": [0.9] * 4}

    class Told:
        def held_out(self, row):
            values = held_out[row["method"]]
            return pd.Series(values, index[: len(values)], dtype=float)

        def values(self, records, row):
            return pd.Series(tested[row["method"]], index)

    ranked = pd.DataFrame(
        [
            {"method": name, "label": name, "metric": "accuracy", "mean": np.mean(tested[name])}
            for name in ("C", "A", "B")
        ]
    )
    order, choice = _chosen(Told(), pd.DataFrame(), ranked)
    assert list(order["label"]) == ["A", "B", "C"]
    assert (choice.rows, choice.untried) == (2, ["C"])
    assert (choice.accuracy, choice.tested) == pytest.approx((0.75, 0.755))
    counts, mean, deviation = choice.by_draw
    assert counts == {"A": 1, "B": 1}
    # Of 0.81 and 0.75.
    assert (mean, deviation) == pytest.approx((0.78, 0.06 / np.sqrt(2)))


def test_the_report_shows_counts_and_greys_what_few_images_say(judged, tiny):
    page = (
        (tiny / "results/experiments/tiny/latest/report.html").read_text()
        if (tiny / "results/experiments/tiny/latest").exists()
        else next(tiny.glob("results/experiments/tiny/*/report.html")).read_text()
    )
    assert "n = 32" in page and "n = 8" in page
    assert 'class="unsure" title="fewer than 30 test images"' in page
    assert '<p class="verdict">Take ' in page


def test_the_table_command_prints_it(judged, tiny, capsys):
    folder = next(tiny.glob("results/experiments/tiny/*/report.html")).parent
    assert main(["table", str(folder)]) == 0
    assert "accuracy" in capsys.readouterr().out
