"""Tables: means, deviations, the papers' numbers, and what people read."""

from __future__ import annotations

import math
from pathlib import Path
from typing import get_args

import pandas as pd
import pytest

from ltpipe.config.experiment import Table
from ltpipe.evaluation.tables import (
    METRIC_TITLES,
    build_table,
    paper_method,
    to_markdown,
    to_text,
    wide,
)
from ltpipe.stage2.core.conformal import SET_METRICS
from ltpipe.stage2.core.results import SCALARS
from ltpipe.stage2.hrjba.groups import GROUP_METRICS
from ltpipe.utils.errors import InputError

EXPECTED = Path(__file__).resolve().parents[2] / "data/expected"
DATASETS = {
    "c10": {"label": "CIFAR-10-LT", "benchmark": "CIFAR-10-LT", "imbalance": 200.0},
    "mine": {"label": "mine", "benchmark": None, "imbalance": None},
}


def records(values):
    """Rows of (dataset, method, seed, point, parameters, protocol, metric, value)."""
    columns = ["dataset", "method", "seed", "point", "parameters", "protocol", "metric", "value"]
    table = pd.DataFrame(values, columns=columns)
    return table.assign(label=table["method"], kind="x", diverged="", **{"class": math.nan})


ROWS = records(
    [
        ("c10", "CE", 0, 0, "{}", "last", "accuracy", 0.50),
        ("c10", "CE", 1, 0, "{}", "last", "accuracy", 0.60),
        ("c10", "CE", 2, 0, "{}", "last", "accuracy", 0.70),
        ("c10", "FFN", 0, 0, '{"w1":0.1}', "last", "accuracy", 0.80),
        ("c10", "FFN", 0, 1, '{"w1":0.5}', "last", "accuracy", 0.82),
        ("c10", "FFN", 0, 1, '{"w1":0.5}', "best_test", "accuracy", 0.84),
        ("mine", "CE", 0, 0, "{}", "last", "accuracy", 0.40),
    ]
)


def table(rows, datasets=("c10",), expected=None, metrics=("accuracy",)):
    settings = {"rows": rows, "datasets": list(datasets), "metrics": list(metrics)}
    return build_table(ROWS, {**settings, "expected": expected}, DATASETS, EXPECTED)


def test_mean_and_deviation_over_seeds():
    (row,) = table([{"method": "CE"}]).to_dict("records")
    assert row["mean"] == pytest.approx(0.6)
    assert row["sd"] == pytest.approx(0.1)
    assert row["seeds"] == 3


def test_one_seed_has_no_deviation_and_one_point_can_be_picked():
    found = table([{"method": "FFN", "at": {"w1": 0.1}}])
    assert len(found) == 1
    assert math.isnan(found["sd"][0])


def test_without_a_point_a_sweep_is_a_row_each_and_protocols_stand_apart():
    found = table([{"method": "FFN", "label": "F"}])
    assert found["label"].tolist() == ["F (w1 = 0.1)", "F (w1 = 0.5)", "F (w1 = 0.5) [best_test]"]
    assert found["mean"].tolist() == [0.80, 0.82, 0.84]


def test_what_was_not_run_is_left_out():
    found = table([{"method": "CE"}, {"method": "FFN"}], datasets=("c10", "mine"))
    assert found[found["dataset"] == "mine"]["label"].tolist() == ["CE"]


def test_the_papers_number_stands_beside_with_its_protocol():
    rows = [{"method": "FFN", "paper_method": "FFN w_KPS={w1:.1f} w_CE={w2:.1f}"}]
    found = table(rows, expected={"paper": "ffn", "table": "T3"})
    assert found["paper"].tolist() == [79.81, 82.65, 82.65]
    assert set(found["paper_protocol"]) == {"best_test"}
    text = to_markdown(found, "T", "note")
    assert "79.8 (+0.2)" in text
    assert "82.7 (-0.7)" in text or "82.6 (-0.7)" in text


def test_names_of_published_rows_are_filled_in():
    assert paper_method("w_KPS={w1:.1f} w_CE={w2:.1f}", {"w1": 0.3}) == "w_KPS=0.3 w_CE=0.7"
    assert paper_method("FFN", {}) == "FFN"


def test_published_tables_that_do_not_exist_are_refused():
    with pytest.raises(InputError, match="no such file with published numbers"):
        table([{"method": "CE"}], expected={"paper": "fnf", "table": "T3"})
    with pytest.raises(InputError, match="has no table 'T9'"):
        table([{"method": "CE"}], expected={"paper": "ffn", "table": "T9"})


def test_the_best_mean_is_marked_and_bars_are_escaped():
    found = table([{"method": "CE", "label": "a|b"}, {"method": "FFN", "at": {"w1": 0.5}}])
    arranged = wide(found)
    assert arranged.columns == ["accuracy"]
    assert [(label, [cell.best for cell in cells]) for label, cells in arranged.rows] == [
        ("a|b", [False]),
        ("FFN", [True]),
        ("FFN [best_test]", [False]),
    ]
    assert "| a\\|b | 60.0 ± 10.0 |" in to_markdown(found, "T", "note")
    assert "82.0*" in to_text(found, "T", "note")


def test_tables_settings_and_methods_name_the_same_metrics():
    (names,) = get_args(Table.model_fields["metrics"].annotation)
    assert set(get_args(names)) == set(METRIC_TITLES) == {*SCALARS, *GROUP_METRICS, *SET_METRICS}


LOST = ROWS.assign(
    value=ROWS["value"].where(~((ROWS["method"] == "CE") & (ROWS["seed"] == 1))),
    diverged=[
        "the loss is nan" if m == "CE" and s == 1 else ""
        for m, s in ROWS[["method", "seed"]].to_numpy()
    ],
)
NONE_LEFT = ROWS.assign(
    value=ROWS["value"].where(ROWS["method"] != "CE"),
    diverged=["the loss is nan" if method == "CE" else "" for method in ROWS["method"]],
)


def test_runs_that_did_not_converge_are_counted_and_not_averaged():
    settings = {"rows": [{"method": "CE"}], "datasets": ["c10"], "metrics": ["accuracy"]}
    found = build_table(LOST, settings, DATASETS, EXPECTED)
    (row,) = found.to_dict("records")
    assert (row["seeds"], row["converged"]) == (3, 2)
    assert row["mean"] == pytest.approx(0.6)
    assert row["diverged"] == "the loss is nan"
    assert wide(found).rows[0][1][0].text == "60.0 ± 14.1 (2/3)"


def test_a_method_with_a_lost_run_is_never_the_best():
    rows = [{"method": "CE"}, {"method": "FFN", "at": {"w1": 0.1}}]
    settings = {"rows": rows, "datasets": ["c10"], "metrics": ["accuracy"]}
    better = LOST.assign(
        value=[2 * v if m == "CE" else v for m, v in LOST[["method", "value"]].to_numpy()]
    )
    cells = {
        label: cells[0]
        for label, cells in wide(build_table(better, settings, DATASETS, EXPECTED)).rows
    }
    assert cells["CE"].text.startswith("120.0")
    assert not cells["CE"].best


def test_where_nothing_converged_there_is_a_dash():
    settings = {
        "rows": [{"method": "CE", "paper_method": "CE"}],
        "datasets": ["c10"],
        "metrics": ["accuracy"],
        "expected": {"paper": "ffn", "table": "T4"},
    }
    found = build_table(NONE_LEFT, settings, DATASETS, EXPECTED)
    assert found["converged"].tolist() == [0]
    cells = [cell.text for cell in wide(found).rows[0][1]]
    assert cells[0] == "–"
    assert "nan" not in " ".join(cells)


def test_plain_metrics_stand_beside_published_percents_in_one_unit():
    datasets = {"oct": {"label": "OCT", "benchmark": "OCTMNIST", "imbalance": None}}
    rows = records([("oct", "CWS", 0, 0, "{}", "last", "auc", 0.95)])
    settings = {
        "rows": [{"method": "CWS", "paper_method": "CWS"}],
        "datasets": ["oct"],
        "metrics": ["auc"],
        "expected": {"paper": "cws", "table": "T4"},
    }
    found = build_table(rows, settings, datasets, EXPECTED)
    assert found["paper"].tolist() == [pytest.approx(0.947)]
    assert [cell.text for cell in wide(found).rows[0][1]] == ["0.950", "0.947 (+0.003)"]


def test_variants_of_one_published_row_share_a_stem():
    assert paper_method("{stem}|CWS", {}, "CE+None--CWS-39") == "CE+None|CWS"
    assert paper_method("{stem}|CWS", {}, "CE+None") == "CE+None|CWS"
