"""Tables: means, deviations, the papers' numbers, and what people read."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import get_args

import h5py
import numpy as np
import pandas as pd
import pytest

from ltpipe.config.experiment import Table
from ltpipe.config.tables import BY_CLASS, BY_RANK, DATASET_FACTS
from ltpipe.evaluation.published import paper_method, read_published, rows_beside
from ltpipe.evaluation.tables import (
    DERIVED_TITLES,
    METRIC_TITLES,
    build_table,
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


def test_draws_and_seeds_are_not_pooled():
    values = {0: [0.50, 0.52], 1: [0.60, 0.62], 2: [0.70, 0.72]}
    rows = records(
        [
            ("c10", "CE", seed, 0, "{}", "last", "accuracy", value)
            for _, of_draw in sorted(values.items())
            for seed, value in enumerate(of_draw)
        ]
    ).assign(draw=np.repeat(list(values), 2))
    settings = {"rows": [{"method": "CE"}], "datasets": ["c10"], "metrics": ["accuracy"]}
    for seeds in ([0], [0, 1]):
        chosen = rows[rows["seed"].isin(seeds)]
        found = build_table(chosen, {**settings, "expected": None}, DATASETS, EXPECTED)
        (row,) = found.to_dict("records")
        assert math.isnan(row["sd"]) and row["draws"] == 3 and row["seeds"] == 3 * len(seeds)
        if seeds == [0]:
            # Student's t of three draws: 4.302653 0.1 / sqrt(3).
            assert row["half"] == pytest.approx(4.302653 * 0.1 / math.sqrt(3))
            assert to_text(found, "", "").splitlines()[3].split()[-2:] == ["±", "24.8"]
        else:
            # Without interaction both effects count: the smaller number of seeds makes it wide.
            pooled = 2.570582 * np.std(chosen["value"], ddof=1) / math.sqrt(6)
            assert row["half"] > 2 * pooled


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
    assert set(METRIC_TITLES) == {*SCALARS, *GROUP_METRICS, *SET_METRICS}
    assert set(get_args(names)) == {*METRIC_TITLES, *DERIVED_TITLES}
    assert set(DERIVED_TITLES) == {*DATASET_FACTS, *BY_RANK, *BY_CLASS}


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


@pytest.fixture
def voc(tmp_path):
    """VOC's classes and test images as HRJBA's Table 2 counts them, and the paper's own answers."""
    rows = read_published("hrjba", EXPECTED)
    tests = rows[rows["metric"].str.startswith("n_test:")].set_index("metric")["value"].astype(int)
    names = [name.removeprefix("n_test:") for name in tests.index]
    aliases = {"Table": "diningtable", "Plant": "pottedplant", "TV": "tvmonitor"}
    with h5py.File(tmp_path / "subset.h5", "w") as file:
        # In the alphabet's order, as the reader has them, and not by rank.
        order = sorted(range(20), key=lambda i: aliases.get(names[i], names[i].lower()))
        file.attrs["class_names"] = json.dumps(
            [aliases.get(names[i], names[i].lower()) for i in order]
        )
        file["class_counts"] = [500 - 20 * i for i in order]
        file["test_labels"] = np.repeat(np.arange(20), [tests.iloc[i] for i in order])
    values = rows[(rows["table"] == "T6")]
    found = []
    for method, part in values.groupby("method", sort=False):
        shares = part.set_index("metric")["value"].astype(float) / 100
        for index, i in enumerate(order):
            one = ("voc", method, 0, 0, "{}", "last", "class_accuracy", shares[f"acc:{names[i]}"])
            found.append((*one, index))
    columns = ["dataset", "method", "seed", "point", "parameters", "protocol", "metric", "value"]
    made = pd.DataFrame(found, columns=[*columns, "class"])
    datasets = {"voc": {"label": "VOC-LT", "benchmark": "VOC-LT", "imbalance": None, "folder": "."}}

    def build(**settings):
        whole = {"datasets": ["voc"], "ranks": [], "ranked_by": "test", **settings}
        records = made.assign(label=made["method"], kind="x", diverged="")
        return build_table(records, whole, datasets, EXPECTED, tmp_path)

    return build


OWN = "HRJBA(oracle)"


def test_groups_of_hrjbas_table_5_are_micro_accuracies_of_8_7_and_5_classes(voc):
    """From the paper's own accuracies of classes (Table 6) its groups follow to a hundredth."""
    methods = ["Baseline", "Optimal", "HATA", OWN]
    found = voc(
        rows=[{"method": m, "paper_method": m, "networks": ["resnet32"]} for m in methods],
        metrics=["rank_accuracy"],
        ranks=[8, 7, 5],
        expected={"paper": "hrjba", "table": "T5"},
    )
    assert found["metric"].unique().tolist() == [
        "rank_accuracy:1-8",
        "rank_accuracy:9-15",
        "rank_accuracy:16-20",
    ]
    own = 100 * found[found["label"] == OWN]["mean"]
    assert own.round(2).tolist() == [68.26, 43.08, 53.82]
    np.testing.assert_allclose(100 * found["mean"], found["paper"], atol=0.05)
    arranged = wide(found)
    assert arranged.columns[:2] == ["classes 1-8", "paper, classes 1-8"]
    assert arranged.rows[-1][1][0].text == "68.3"


def test_errors_of_bins_and_of_classes_stand_beside_the_papers(voc):
    """Tables 2 and 3 of HRJBA are errors of its baseline."""
    bins = voc(
        rows=[{"method": "Baseline", "paper_method": "CE", "networks": ["resnet32"]}],
        metrics=["rank_error"],
        ranks=[5, 5, 5, 5],
        expected={"paper": "hrjba", "table": "T3"},
    )
    assert bins["paper"].tolist() == [37.01, 42.52, 63.33, 57.09]
    np.testing.assert_allclose(100 * bins["mean"], bins["paper"], atol=0.01)
    classes = voc(
        rows=[{"method": "Baseline", "paper_method": "CE", "networks": ["resnet32"]}],
        metrics=["class_test_images", "class_error"],
        expected={"paper": "hrjba", "table": "T2"},
    )
    assert classes["paper"].notna().all()
    arranged = wide(classes)
    assert [label for label, _ in arranged.rows][:2] == ["person", "cat"]
    assert len(arranged.rows) == 20
    cells = dict(zip(arranged.columns, arranged.rows[0][1], strict=True))
    assert cells["test images"].text == "546"
    assert cells["Baseline, error"].text == "28.2"
    assert cells["paper, Baseline, error"].text.startswith("28.2 (")


def test_ranks_must_cover_the_classes(voc):
    with pytest.raises(InputError, match="are 15 classes, VOC-LT has 20"):
        voc(rows=[{"method": "Baseline"}], metrics=["rank_accuracy"], ranks=[8, 7])


@pytest.mark.parametrize(
    ("networks", "paper"),
    [
        (["RN50-quickgelu"], 46.5),
        (["RN101-quickgelu"], 47.9),
        (["ViT-B-16-quickgelu"], 49.5),
        (["resnet18"], math.nan),
        ([], math.nan),
    ],
)
def test_the_papers_number_is_that_of_the_methods_network(networks, paper):
    """ECVL's Table 4 has BALLAD on three towers; the first is not always the right one."""
    datasets = {"p": {"label": "Places-LT", "benchmark": "Places-LT", "imbalance": None}}
    settings = {
        "rows": [{"method": "B", "paper_method": "BALLAD", "networks": networks}],
        "datasets": ["p"],
        "metrics": ["accuracy"],
        "expected": {"paper": "ecvl", "table": "T4"},
    }
    made = records([("p", "B", 0, 0, "{}", "last", "accuracy", 0.5)])
    found = build_table(made, settings, datasets, EXPECTED)["paper"].tolist()
    assert found == [pytest.approx(paper, nan_ok=True)]


def test_attention_tells_two_published_networks_apart():
    rows = read_published("hrjba", EXPECTED)
    table4 = rows[rows["table"] == "T4"]
    voc_lt = {"benchmark": "VOC-LT", "imbalance": None}
    for network, name in (("resnet32", "BM-ResNet32"), ("resnet32+simam", "AM-ResNet32")):
        row = {"method": "x", "paper_method": "CE", "networks": [network]}
        found = rows_beside(table4, voc_lt, row, {}, "class_accuracy:cow")
        assert found["backbone"].tolist() == [name]


def test_quoted_rows_are_marked_and_have_no_number_of_ours():
    datasets = {"p": {"label": "Places-LT", "benchmark": "Places-LT", "imbalance": None}}
    expected = {"paper": "dlsa", "table": "T2", "quoted": ["BALMS", "RSG"]}
    settings = {
        "rows": [{"method": "B"}],
        "datasets": ["p"],
        "metrics": ["accuracy", "mcc"],
        "expected": expected,
    }
    made = records([("p", "B", 0, 0, "{}", "last", m, 0.5) for m in ("accuracy", "mcc")])
    arranged = wide(build_table(made, settings, datasets, EXPECTED))
    assert [label for label, _ in arranged.rows] == [
        "B",
        "BALMS, ResNet152 [quoted]",
        "RSG, ResNet152 [quoted]",
    ]
    cells = [cell.text for cell in arranged.rows[1][1]]
    assert arranged.columns[:2] == ["accuracy", "paper, accuracy"]
    assert cells[:2] == ["", "38.7"]
    assert not any(cell.best for _, row in arranged.rows[1:] for cell in row)
    with pytest.raises(InputError, match="has no row 'nobody' to quote"):
        build_table(
            made, {**settings, "expected": {**expected, "quoted": ["nobody"]}}, datasets, EXPECTED
        )


def test_facts_of_data_sets_stand_beside_the_papers(tmp_path):
    with h5py.File(tmp_path / "subset.h5", "w") as file:
        file.attrs["class_names"] = json.dumps(["a", "b"])
        file["class_counts"] = [12600, 8]
        file["test_labels"] = np.zeros(10000, int)
    datasets = {
        "c": {
            "label": "CIFAR-100-LT (50)",
            "benchmark": "CIFAR-100-LT",
            "imbalance": 50.0,
            "folder": ".",
            "size": 32,
        }
    }
    settings = {
        "kind": "datasets",
        "rows": [],
        "datasets": ["c"],
        "metrics": ["train_images", "test_images", "classes", "image_size"],
        "expected": {"paper": "hrjba", "table": "T1"},
    }
    arranged = wide(build_table(ROWS, settings, datasets, EXPECTED, tmp_path))
    assert arranged.columns[::2] == ["training images", "test images", "classes", "image size"]
    ((label, cells),) = arranged.rows
    assert label == "CIFAR-100-LT (50)"
    texts = [cell.text for cell in cells]
    assert texts[:4] == ["12608", "12067 (+541)", "10000", "10000 (+0)"]
    assert texts[4:] == ["2", "100 (-98)", "32", "32 (+0)"]


def test_runs_of_classes_are_told_apart_by_draw_and_seed(tmp_path):
    """Two draws of one seed are two runs, each with its own share of right answers."""
    with h5py.File(tmp_path / "two.h5", "w") as file:
        file.attrs["class_names"] = json.dumps(["a", "b"])
        file["class_counts"] = [9, 3]
        file["test_labels"] = [0, 0, 0, 1]
    (tmp_path / "two").mkdir()
    (tmp_path / "two.h5").rename(tmp_path / "two/subset.h5")
    found = [("d", "M", 0, 0, "{}", "last", "class_accuracy", v) for v in (1.0, 0.0, 0.0, 1.0)]
    made = records(found).assign(**{"class": [0, 1, 0, 1], "draw": [0, 0, 1, 1]})
    settings = {
        "rows": [{"method": "M"}],
        "datasets": ["d"],
        "metrics": ["rank_accuracy"],
        "ranks": [2],
        "ranked_by": "train",
    }
    described = {"label": "d", "benchmark": None, "imbalance": None, "folder": "two"}
    (row,) = build_table(made, settings, {"d": described}, EXPECTED, tmp_path).to_dict("records")
    assert (row["seeds"], row["mean"]) == (2, 0.5)
    # Student's t of two draws: 12.7062 (0.5 / sqrt(2)) / sqrt(2).
    assert math.isnan(row["sd"]) and row["half"] == pytest.approx(12.7062 * 0.25, rel=1e-5)
