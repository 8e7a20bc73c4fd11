"""The table over many experiments: means, order, and what stands last."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from ltpipe.evaluation.overview import summarise, wide_of


def records():
    rows = []
    for dataset, method, protocol, values in (
        ("B", "low", "last", [0.5, 0.7]),
        ("B", "told", "oracle", [0.99, 0.97]),
        ("B", "high", "best_val", [0.8, 0.9]),
        ("A", "low", "last", [0.4]),
    ):
        for seed, value in enumerate(values):
            for metric in ("accuracy", "many", "medium", "few", "ece"):
                shown = np.nan if metric == "medium" else value
                rows.append((dataset, 0, method, seed, metric, shown, "e", protocol))
    columns = ["dataset", "draw", "row", "seed", "metric", "value", "experiment", "protocol"]
    return pd.DataFrame(rows, columns=columns)


def test_best_means_come_first_and_oracles_last_in_the_files_order_of_data_sets():
    table = summarise(records())
    assert list(zip(table["dataset"], table["method"], strict=True)) == [
        ("B", "high"),
        ("B", "low"),
        ("B", "told"),
        ("A", "low"),
    ]
    assert table["accuracy"].tolist() == pytest.approx([0.85, 0.6, 0.98, 0.4])
    assert table["accuracy_sd"].tolist()[:2] == pytest.approx([0.1 / 2**0.5, 0.2 / 2**0.5])
    assert np.isnan(table["accuracy_sd"].iloc[3])
    assert table["seeds"].tolist() == [2, 2, 2, 1]
    assert "ece" not in table


def test_rows_are_shown_in_percent_and_oracles_are_marked():
    table = summarise(records())
    wide = wide_of(table[table["dataset"] == "B"])
    assert wide.columns == ["accuracy", "many", "medium", "few", "n", "experiment"]
    labels = [label for label, _ in wide.rows]
    assert labels == ["high", "low", "told [oracle]"]
    assert [cell.text for cell in wide.rows[0][1]] == [
        "85.0 ± 7.1",
        "85.0 ± 7.1",
        "–",
        "85.0 ± 7.1",
        "2",
        "e",
    ]
