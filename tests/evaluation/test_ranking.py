"""Rankings of methods: ranks by loops, published critical values, the drawn figure."""

from __future__ import annotations

import importlib

import numpy as np
import pandas as pd
import pytest

from ltpipe.evaluation.figures.base import Material
from ltpipe.utils.errors import InputError

# The package has the function of this name.
ranking = importlib.import_module("ltpipe.evaluation.figures.ranking")


def test_critical_differences_are_the_published_ones():
    # Demsar, JMLR 2006, table 5 (a) and the example of section 3.2.4.
    for methods, q in ((2, 1.960), (4, 2.569), (10, 3.164)):
        expected = q * np.sqrt(methods * (methods + 1) / (6 * 14))
        assert ranking.critical_difference(methods, 14) == pytest.approx(expected, abs=1e-3)
    assert ranking.critical_difference(4, 14) == pytest.approx(1.25, abs=5e-3)


def test_mean_ranks_are_those_of_loops():
    values = pd.DataFrame({"a": [0.9, 0.5, 0.7], "b": [0.8, 0.6, 0.7], "c": [0.1, 0.2, 0.3]})
    found = ranking.mean_ranks(values)
    assert found.to_dict() == pytest.approx({"a": 1.5, "b": 1.5, "c": 3.0})
    assert ranking.mean_ranks(values, low_is_better=True)["c"] == 1


def material(tmp_path, draws=4):
    stream = np.random.default_rng(0)
    rows, results = [], []
    for draw in range(draws):
        for method, level in (("x", 0.9), ("y", 0.7), ("z", 0.5)):
            results.append({"dataset": "d", "method": method, "label": method.upper()})
            for metric in ("accuracy", "many", "medium", "few"):
                value = level + 0.01 * stream.normal()
                rows.append(("d", method, draw, 0, "last", "{}", metric, value))
            rows.append(("d", method, draw, 0, "best_test", "{}", "accuracy", 0.0))
    columns = ["dataset", "method", "draw", "seed", "protocol", "parameters", "metric", "value"]
    records = pd.DataFrame(rows, columns=columns)
    return Material({"results": results}, records, tmp_path, tmp_path / "out", tmp_path)


SETTINGS = {"name": "all", "datasets": ["d"], "methods": ["x", "y", "z"], "metric": "accuracy"}


def test_a_ranking_is_drawn_with_its_data(tmp_path, monkeypatch):
    monkeypatch.setattr(ranking, "_seconds", lambda *given: 1.5)
    drawn = ranking.ranking(material(tmp_path), SETTINGS)
    data = pd.read_csv(tmp_path / "out/ranking-all.csv")
    assert data["method"].tolist() == ["x", "y", "z"] and data["rank"].tolist() == [1, 2, 3]
    assert data["accuracy"].tolist() == pytest.approx([0.9, 0.7, 0.5], abs=0.02)
    assert "3 methods" in drawn.title and (tmp_path / "out/ranking-all.svg").is_file()


def test_a_ranking_needs_several_draws(tmp_path):
    with pytest.raises(InputError, match="two data sets or draws"):
        ranking.ranking(material(tmp_path, draws=1), SETTINGS)
