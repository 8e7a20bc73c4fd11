"""Figures of CWS, from tables made by hand."""

from __future__ import annotations

import json
import math

import h5py
import pandas as pd
import pytest

from ltpipe.evaluation.figures import Material, draw_figures
from ltpipe.utils.errors import InputError

DATASET = {"label": "made", "folder": "data", "groups": "ranks", "note": ""}


def material(tmp_path, *figures, records=None):
    (tmp_path / "data").mkdir(exist_ok=True)
    with h5py.File(tmp_path / "data/subset.h5", "w") as file:
        file.attrs["class_names"] = json.dumps(["rare", "common", "whole"])
        file["class_counts"] = [4, 10, 3]
    stage1 = []
    for seed, inner in ((0, 2), (1, 4)):
        folder = tmp_path / f"split{seed}"
        folder.mkdir(exist_ok=True)
        rows = [
            (epoch, label, shell, samples)
            for epoch in (0, 1)
            for label, shell, samples in (
                (0, 0, 1),
                (0, 1, 3),
                (1, 0, inner),
                (1, 1, 10 - inner),
                (1, 2, 0),
                (2, 0, 3),
            )
        ]
        columns = ["epoch", "class", "subclass", "samples"]
        pd.DataFrame(rows, columns=columns).to_csv(folder / "occupancy.csv", index=False)
        history = pd.DataFrame(
            {"epoch": [0, 1], "learning_rate": 0.1, "loss": [2.0, 1.0], "accuracy": 0.5}
        )
        history.assign(seconds=1.0).to_csv(folder / "history.csv", index=False)
        for backbone in ("split", "other"):
            row = {"dataset": "d", "backbone": backbone, "seed": seed}
            stage1.append({**row, "folder": f"split{seed}"})
    spec = {"datasets": {"d": DATASET}, "results": [], "stage1": stage1, "figures": figures}
    return Material(spec, records, tmp_path, tmp_path / "figures", tmp_path)


def occupancy(**settings):
    return {"kind": "subclass_occupancy", "dataset": "d", "backbone": "split", **settings}


def drawn(made):
    (figure,) = draw_figures(made)
    for suffix in ("png", "svg"):
        assert (made.output / f"{figure.name}.{suffix}").stat().st_size > 5000
    return figure, pd.read_csv(made.output / f"{figure.name}.csv")


def test_shares_of_the_largest_classes_are_averaged_over_seeds(tmp_path):
    figure, data = drawn(material(tmp_path, occupancy(classes=4)))
    assert figure.name == "occupancy-split-d"
    assert "2 seeds" in figure.caption
    # A class with one subclass has nothing to show.
    assert sorted(data["class"].unique()) == [0, 1]
    last = data[(data["epoch"] == 1) & (data["class"] == 1)]["share"].tolist()
    assert last == pytest.approx([0.3, 0.7, 0])
    _, data = drawn(material(tmp_path, occupancy(classes=1)))
    assert data["class"].unique().tolist() == [1]


def test_a_missing_table_is_named(tmp_path):
    made = material(tmp_path, occupancy(classes=2))
    (tmp_path / "split0/occupancy.csv").unlink()
    with pytest.raises(InputError, match=r"split0/occupancy\.csv: missing or damaged"):
        draw_figures(made)


def test_curves_of_chosen_backbones_only(tmp_path):
    figure = {"kind": "training_curves", "dataset": "d", "backbones": ["split"]}
    _, data = drawn(material(tmp_path, figure))
    assert data["backbone"].unique().tolist() == ["split"]
    nobody = {**figure, "backbones": ["nobody"]}
    with pytest.raises(InputError, match="none of nobody was trained on d"):
        draw_figures(material(tmp_path, nobody))


def curve(**settings):
    lines = {"one": {"a": 0.5, "b": 0.99}, "two": {"c": 0.99}}
    base = {"kind": "setting_curve", "dataset": "d", "setting": "alpha", "name": "smooth"}
    return {**base, "metric": "accuracy", "lines": lines, **settings}


def results():
    rows = [("a", 0, 0.5), ("a", 1, 0.7), ("b", 0, 0.8), ("b", 1, math.nan), ("c", 0, 0.4)]
    table = pd.DataFrame(rows, columns=["method", "seed", "value"])
    return table.assign(dataset="d", metric="accuracy", protocol="last", parameters="{}")


def test_a_metric_over_a_setting(tmp_path):
    figure, data = drawn(material(tmp_path, curve(), records=results()))
    assert figure.name == "setting-alpha-smooth-d"
    assert data["alpha"].tolist() == [0.5, 0.99, 0.99]
    assert data["mean"].tolist() == pytest.approx([0.6, 0.8, 0.4])
    # A run that did not converge is no part of a mean.
    assert data["seeds"].tolist() == [2, 1, 1]


def test_what_a_line_is_compared_with_is_a_level(tmp_path):
    figure, data = drawn(material(tmp_path, curve(levels={"two": "b"}), records=results()))
    assert data["alpha"].isna().tolist() == [False, False, False, True]
    assert data.iloc[3][["line", "method", "mean"]].tolist() == ["two", "b", 0.8]
    assert "Dashed: without alpha" in figure.caption
    with pytest.raises(InputError, match="never was not run on d"):
        draw_figures(material(tmp_path, curve(levels={"one": "never"}), records=results()))


def test_a_method_that_was_not_run_is_named(tmp_path):
    lines = {"one": {"a": 0.5, "never": 0.9}}
    with pytest.raises(InputError, match="never was not run on d"):
        draw_figures(material(tmp_path, curve(lines=lines), records=results()))
