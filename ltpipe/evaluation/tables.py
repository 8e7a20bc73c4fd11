"""Tables of means over seeds, with the papers' numbers beside them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ltpipe.config.tables import BY_CLASS, BY_RANK
from ltpipe.evaluation.draws import LEVEL, crossed_interval
from ltpipe.evaluation.published import (
    of_dataset,
    published_metric,
    published_table,
    quoted_rows,
    rows_beside,
)
from ltpipe.evaluation.records import read_class_counts, read_test_counts
from ltpipe.utils.errors import InputError

# How each paper's own code comes by its numbers.
PAPER_PROTOCOLS = {
    "ffn": "best_test",  # "best Prec@1" on the test loader, both stages
    "dlsa": "best_test",  # classifiers restore the best epoch on the test loader
    "hrjba": "oracle_group",  # head or tail membership of a test sample is known
    "cws": "not stated",
    "ecvl": "not stated",
}
METRIC_TITLES = {
    "accuracy": "accuracy",
    "many": "many",
    "medium": "medium",
    "few": "few",
    "head_tail_gap": "head-tail gap",
    "balanced_accuracy": "balanced",
    "macro_f1": "macro F1",
    "mcc": "MCC",
    "nmi": "NMI",
    "auc": "AUC",
    "ece": "ECE",
    "nll": "NLL",
    "head_group": "head",
    "tail_group": "tail",
    "coverage": "coverage",
    "macro_coverage": "macro coverage",
    "covered_below_half": "below half",
    "set_size": "set size",
}
# What tables make of records and of the data sets.
DERIVED_TITLES = {
    "rank_accuracy": "accuracy",
    "rank_error": "error",
    "train_images": "training images",
    "test_images": "test images",
    "classes": "classes",
    "image_size": "image size",
    "class_accuracy": "accuracy",
    "class_error": "error",
    "class_test_images": "test images",
}
# Fractions are shown in percent; these are not fractions, or not usually shown as such.
PLAIN = {"mcc", "nmi", "auc", "ece", "nll", "set_size"}
COUNTS = {"train_images", "test_images", "classes", "image_size", "class_test_images"}
LOW_IS_BETTER = {
    "head_tail_gap",
    "ece",
    "nll",
    "covered_below_half",
    "set_size",
    "rank_error",
    "class_error",
}
_QUOTED = "quoted"


def kind_of(metric: str) -> str:
    """Return what a metric of a class or a group of ranks is called without it."""
    return metric.partition(":")[0]


def title_of(metric: str) -> str:
    """Return what a column of a metric is called."""
    kind, _, part = metric.partition(":")
    if kind.startswith("rank_"):
        return f"error, classes {part}" if kind == "rank_error" else f"classes {part}"
    return part or METRIC_TITLES.get(kind) or DERIVED_TITLES[kind]


_COLUMNS = ["dataset", "dataset_label", "row", "method", "label", "parameters", "protocol"]
_COLUMNS += [
    "metric",
    "mean",
    "sd",
    "half",
    "draws",
    "seeds",
    "converged",
    "diverged",
    "paper",
    "paper_protocol",
]


def build_table(
    records: pd.DataFrame,
    table: Mapping[str, Any],
    datasets: Mapping[str, Mapping[str, Any]],
    expected_dir: Path,
    base: Path = Path(),
) -> pd.DataFrame:
    """Return one row for each data set, table row, protocol and metric.

    Columns: dataset, dataset_label, row (its order), label, parameters, protocol, metric, mean,
    sd (n - 1 in the divisor; NaN for one seed and for several draws, whose runs are not
    independent), half (half the 95 % interval of the mean over draws and seeds, `crossed_interval`;
    NaN for one draw), draws, seeds (runs, of all draws), converged (how many of them did: mean and
    spread are theirs), diverged (why the others did not), paper (in the unit of `mean`'s display:
    percent, or plain; NaN where nothing is published), paper_protocol. A row without `at` gives
    one row for each point of a sweep. A method's own protocol comes first; further ones, such as
    best_test, follow under their name and never replace it. What was not run is left out. Metrics
    of classes and of groups of ranks are named with them after a colon. Quoted rows of the
    published table follow, with a protocol of that name and no mean. `base` is what the data sets'
    folders are relative to.

    Raises:
        InputError: the published table or a quoted row of it does not exist, or `ranks` are not
            as many as there are classes.
    """
    published = published_table(table.get("expected"), expected_dir)
    paper_protocol = _paper_protocol(table.get("expected"))
    rows: list[dict[str, Any]] = []
    for dataset in table["datasets"]:
        described = datasets[dataset]
        shared = {"dataset": dataset, "dataset_label": described["label"], "parameters": "{}"}
        shared |= {
            "sd": float("nan"),
            "half": float("nan"),
            "draws": 1,
            "seeds": 0,
            "converged": 0,
            "diverged": "",
        }
        shared["paper_protocol"] = paper_protocol
        place = 0
        if table.get("kind") == "datasets":
            row = {"paper_method": "dataset"}
            for metric, value in _facts(described, table["metrics"], base).items():
                paper = _paper_value(published, described, row, {}, metric)
                found = {"row": 0, "label": described["label"], "protocol": "", "metric": metric}
                rows.append({**shared, **found, "mean": value, "paper": paper})
            continue
        metrics = _metrics_of(table, described, base)
        for row in table["rows"]:
            chosen = records[(records["dataset"] == dataset) & (records["method"] == row["method"])]
            for (_, parameters), point in chosen.groupby(["point", "parameters"], sort=True):
                values = json.loads(parameters)
                if any(values.get(key) != value for key, value in (row.get("at") or {}).items()):
                    continue
                for protocol in point["protocol"].drop_duplicates():
                    place += 1
                    of_protocol = point[point["protocol"] == protocol]
                    for metric, weights in metrics.items():
                        runs = _runs(of_protocol, metric, weights)
                        lost = runs["diverged"] != ""
                        numbers = runs["value"][~lost]
                        paper = _paper_value(published, described, row, values, metric)
                        draws = of_protocol["draw"].nunique() if "draw" in of_protocol else 1
                        rows.append(
                            {
                                **shared,
                                "row": place,
                                "method": row["method"],
                                "label": _label(row, point, values, protocol),
                                "parameters": parameters,
                                "protocol": protocol,
                                "metric": metric,
                                "mean": numbers.mean(),
                                "sd": numbers.std(ddof=1) if draws == 1 else float("nan"),
                                "half": _half(runs[~lost]) if draws > 1 else float("nan"),
                                "draws": draws,
                                "seeds": len(runs) if kind_of(metric) not in COUNTS else 0,
                                "converged": len(numbers),
                                "diverged": "; ".join(dict.fromkeys(runs["diverged"][lost])),
                                "paper": paper,
                            }
                        )
        if published is not None:
            patterns = table["expected"].get("quoted", [])
            rows += _quoted(published, patterns, described, metrics, {**shared, "row": place})
    return pd.DataFrame(rows, columns=_COLUMNS)


def _half(runs: pd.DataFrame) -> float:
    """Return half the interval of the mean of runs over draws and seeds."""
    # Of classes they are the index already.
    runs = runs.reset_index() if "draw" in runs.index.names else runs
    values = runs.set_index(["draw", "seed"])["value"].unstack("seed")
    low, high = crossed_interval(values.to_numpy(), LEVEL)
    return (high - low) / 2


def _metrics_of(
    table: Mapping[str, Any], dataset: Mapping[str, Any], base: Path
) -> dict[str, dict[int, int]]:
    """Return the metrics by name, each with the test samples of the classes that it is over.

    Metrics of all classes that records hold as they are have none.
    """
    metrics: dict[str, dict[int, int]] = {}
    for metric in table["metrics"]:
        if metric not in (*BY_CLASS, *BY_RANK):
            metrics[metric] = {}
            continue
        folder = base / dataset["folder"]
        names, counts = read_class_counts(folder)
        tests = read_test_counts(folder)
        ranked = np.argsort(
            -np.array(tests if table["ranked_by"] == "test" else counts), kind="stable"
        )
        if metric in BY_CLASS:
            metrics |= {f"{metric}:{names[c]}": {int(c): tests[c]} for c in ranked}
            continue
        if sum(table["ranks"]) != len(names):
            raise InputError(
                f"ranks: {table['ranks']} are {sum(table['ranks'])} classes, "
                f"{dataset['label']} has {len(names)}"
            )
        ends = np.cumsum(table["ranks"]).tolist()
        for start, end in zip([0, *ends], ends, strict=False):
            group = {int(c): tests[c] for c in ranked[start:end]}
            metrics[f"{metric}:{start + 1}-{end}"] = group
    return metrics


def _runs(point: pd.DataFrame, metric: str, tests: Mapping[int, int]) -> pd.DataFrame:
    """Return a row a seed: `value` and `diverged`.

    Of classes the value is the share of right (or wrong) answers among all of their test samples.
    """
    if not tests:
        return point[point["metric"] == metric]
    inside = point[(point["metric"] == "class_accuracy") & point["class"].isin(list(tests))]
    weights = inside["class"].map(tests)
    if kind_of(metric) == "class_test_images":
        # A fact of the data: the same whoever is asked, and of no seed.
        return inside.assign(value=weights)[:1]
    run = [name for name in ("draw", "seed") if name in inside]
    hits = inside.assign(hits=inside["value"] * weights).groupby(run, sort=False)["hits"]
    share = hits.sum(min_count=1) / sum(tests.values())
    runs = inside.drop_duplicates(run).set_index(run)[["diverged"]]
    runs["value"] = 1 - share if metric.partition(":")[0].endswith("_error") else share
    return runs


def _facts(dataset: Mapping[str, Any], metrics: list[str], base: Path) -> dict[str, float]:
    """Return numbers of images and classes, and the height at which networks see them."""
    folder = base / dataset["folder"]
    counts = read_class_counts(folder)[1]
    known = {
        "train_images": sum(counts),
        "test_images": sum(read_test_counts(folder)),
        "classes": len(counts),
        "image_size": dataset.get("size", float("nan")),
    }
    return {metric: float(known[metric]) for metric in metrics}


def _quoted(
    published: pd.DataFrame,
    patterns: list[str],
    dataset: Mapping[str, Any],
    metrics: Mapping[str, Any],
    shared: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """Return rows of numbers that the paper has and nobody here makes."""
    rows = []
    chosen = quoted_rows(of_dataset(published, dataset), patterns)
    if chosen.empty:
        return []
    for place, ((method, backbone), part) in enumerate(
        chosen.groupby(["method", "backbone"], sort=False)
    ):
        for metric in metrics:
            paper = _number(part[part["metric"] == published_metric(metric)], metric)
            found = {"row": shared["row"] + 1 + place, "protocol": _QUOTED, "metric": metric}
            label = f"{method}, {backbone} [{_QUOTED}]"
            rows.append({**shared, **found, "label": label, "mean": float("nan"), "paper": paper})
    return rows


def _label(
    row: Mapping[str, Any], point: pd.DataFrame, values: Mapping[str, float], protocol: str
) -> str:
    label = str(row.get("label") or point["label"].iloc[0])
    if not row.get("at") and values:
        label += " (" + ", ".join(f"{key} = {value:g}" for key, value in values.items()) + ")"
    if not protocol.startswith("last"):
        label += f" [{protocol}]"
    return label


def _paper_protocol(expected: Mapping[str, str] | None) -> str:
    return "" if expected is None else PAPER_PROTOCOLS.get(expected["paper"], "not stated")


def _paper_value(
    published: pd.DataFrame | None,
    dataset: Mapping[str, Any],
    row: Mapping[str, Any],
    values: Mapping[str, float],
    metric: str,
) -> float:
    if published is None:
        return float("nan")
    return _number(rows_beside(published, dataset, row, values, metric), metric)


def _number(rows: pd.DataFrame, metric: str) -> float:
    """Return the one published number in the unit in which `metric` is shown, or NaN."""
    numbers = pd.to_numeric(rows["value"], errors="coerce").dropna()
    # All but counts are published in percent, also what is shown as a plain number here.
    unit = 100 if kind_of(metric) in PLAIN else 1
    return float(numbers.iloc[0]) / unit if len(numbers) else float("nan")


def published_curve(
    expected: Mapping[str, str],
    dataset: Mapping[str, Any],
    template: str,
    metric: str,
    points: list[dict[str, float]],
    expected_dir: Path,
) -> list[float]:
    """Return the published values (in percent, NaN where there is none) at sweep points."""
    published = published_table(expected, expected_dir)
    row = {"paper_method": template}
    return [_paper_value(published, dataset, row, point, metric) for point in points]


@dataclass(frozen=True)
class Cell:
    """One entry of a wide table: its text, and whether it is the best of its column."""

    text: str
    best: bool = False


@dataclass(frozen=True)
class Wide:
    """A table as people read it: column titles, and for each row a label and cells."""

    columns: list[str]
    rows: list[tuple[str, list[Cell]]]


def wide(table: pd.DataFrame) -> Wide:
    """Arrange a table of `build_table`: a row a method, a column a data set and metric.

    A method of which some runs did not converge competes with none; a dash stands where none did.

    Fractions are in percent, as mean ± sd, of several draws as mean ± half the interval. Where a
    paper has a number, it stands in a column of its own with the difference of our mean to it. In a
    table of classes these are the rows and methods the columns.
    """
    by_class = bool(len(table)) and all(kind_of(name) in BY_CLASS for name in table["metric"])
    several = table["dataset"].nunique() > 1
    kinds = len({kind_of(name) for name in table["metric"]})
    columns: list[str] = []
    cells: dict[str, dict[str, Cell]] = {}

    def put(row: str, column: str, cell: Cell) -> None:
        if column not in columns:
            columns.append(column)
        cells.setdefault(row, {})[column] = cell

    if not by_class:
        cells = {label: {} for label in table["label"]}
    for key, part in table.groupby(["dataset_label", "metric"], sort=False):
        dataset, metric = map(str, key)
        title = title_of(metric)
        if several and "" not in set(part["protocol"]):
            title = dataset if table["metric"].nunique() == 1 else f"{dataset} {title}"
        # Only numbers of the headline protocol compete; others are shown for comparison.
        whole = part["converged"] == part["seeds"]
        own = np.array([_competes(name) for name in part["protocol"]]) & whole.to_numpy()
        means = part["mean"].round(10)[own]
        best = means.min() if kind_of(metric) in LOW_IS_BETTER else means.max()
        alone = table["metric"].nunique() == 1 and not several
        paper = "paper" if alone else f"paper, {title}"
        for competes, (_, row) in zip(own, part.iterrows(), strict=True):
            is_best = len(means) > 1 and bool(competes) and round(row["mean"], 10) == best
            # Where rows were compared run by run, the best one has to be clearly better.
            is_best = is_best and bool(row.get("winner", True))
            spread = row["sd"] if row["draws"] == 1 else row["half"]
            text = shown_number(row["mean"], spread, metric)
            if 0 < row["converged"] < row["seeds"]:
                text += f" ({row['converged']}/{row['seeds']})"
            if row["protocol"] == _QUOTED:
                text = ""
            if not by_class:
                put(row["label"], title, Cell(text, is_best))
                continue
            across = (
                row["label"] if kinds == 1 else f"{row['label']}, {DERIVED_TITLES[kind_of(metric)]}"
            )
            if kind_of(metric) == "class_test_images":
                across, is_best = DERIVED_TITLES["class_test_images"], False
            put(title, across, Cell(text, is_best))
            if not pd.isna(row["paper"]):
                put(title, f"paper, {across}", Cell(_paper_text(row, metric)))
        if not by_class and part["paper"].notna().any():
            for _, row in part.iterrows():
                put(row["label"], paper, Cell(_paper_text(row, metric)))
    rows = [
        (label, [found.get(column, Cell("")) for column in columns])
        for label, found in cells.items()
    ]
    return Wide(columns, rows)


def _competes(protocol: str) -> bool:
    return protocol.startswith("last") or protocol == "best_val"


def shown_number(mean: float, sd: float, metric: str) -> str:
    """Return mean ± sd, or another spread, in the metric's unit; without it where it is NaN."""
    if pd.isna(mean):
        return "–"
    if kind_of(metric) in COUNTS:
        return f"{mean:.0f}"
    if kind_of(metric) in PLAIN:
        return f"{mean:.3f}" + ("" if pd.isna(sd) else f" ± {sd:.3f}")
    return f"{100 * mean:.1f}" + ("" if pd.isna(sd) else f" ± {100 * sd:.1f}")


def _paper_text(row: pd.Series, metric: str) -> str:
    if pd.isna(row["paper"]):
        return ""
    if kind_of(metric) in COUNTS:
        return f"{row['paper']:.0f} ({row['mean'] - row['paper']:+.0f})"
    if pd.isna(row["mean"]):
        return f"{row['paper']:.3f}" if metric in PLAIN else f"{row['paper']:.1f}"
    if metric in PLAIN:
        return f"{row['paper']:.3f} ({row['mean'] - row['paper']:+.3f})"
    return f"{row['paper']:.1f} ({100 * row['mean'] - row['paper']:+.1f})"


def to_markdown(table: pd.DataFrame, title: str, note: str) -> str:
    """Return the wide table in Markdown, the best mean of each column bold."""
    return "\n".join([f"### {title}", "", markdown_rows(wide(table)), "", note, ""])


def markdown_rows(arranged: Wide) -> str:
    """Return a wide table in Markdown, the best cells bold."""
    lines = ["| method | " + " | ".join(map(_escape, arranged.columns)) + " |"]
    lines.append("| --- |" + " ---: |" * len(arranged.columns))
    for label, cells in arranged.rows:
        shown = [f"**{cell.text}**" if cell.best else cell.text for cell in cells]
        lines.append(f"| {_escape(label)} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def _escape(text: str) -> str:
    return text.replace("|", "\\|")


def to_text(table: pd.DataFrame, title: str, note: str) -> str:
    """Return the wide table in plain text for a terminal; * marks the best mean of a column."""
    arranged = wide(table)
    header = ["", *arranged.columns]
    body = [
        [label, *(cell.text + ("*" if cell.best else " ") for cell in cells)]
        for label, cells in arranged.rows
    ]
    widths = [max(len(row[place]) for row in [header, *body]) for place in range(len(header))]

    def line(row: list[str]) -> str:
        first = row[0].ljust(widths[0])
        others = [text.rjust(width) for text, width in zip(row[1:], widths[1:], strict=True)]
        return "  ".join([first, *others]).rstrip()

    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    return "\n".join([title, rule, line(header), *map(line, body), rule, note])
