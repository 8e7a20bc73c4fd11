"""Tables of means over seeds, with the papers' numbers beside them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ltpipe.utils.errors import InputError

# How each paper's own code comes by its numbers.
PAPER_PROTOCOLS = {
    "ffn": "best_test",  # "best Prec@1" on the test loader, both stages
    "dlsa": "best_test",  # classifiers restore the best epoch on the test loader
    "hrjba": "oracle_group",  # head or tail membership of a test sample is known
    "cws": "not stated",
    "ecvl": "not stated",
}
_PAPER_METRICS = {
    "accuracy": ("acc",),
    # HRJBA's groups of 8, 7 and 5 classes are the many, medium and few of VOC-LT.
    "many": ("acc_many", "acc_head8"),
    "medium": ("acc_medium", "acc_mid7"),
    "few": ("acc_few", "acc_tail5"),
    "macro_f1": ("f1",),
    "mcc": ("mcc",),
    "nmi": ("nmi",),
    "auc": ("auc",),
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
# Fractions are shown in percent; these are not fractions, or not usually shown as such.
PLAIN = {"mcc", "nmi", "auc", "ece", "nll", "set_size"}
LOW_IS_BETTER = {"head_tail_gap", "ece", "nll", "covered_below_half", "set_size"}


def build_table(
    records: pd.DataFrame,
    table: Mapping[str, Any],
    datasets: Mapping[str, Mapping[str, Any]],
    expected_dir: Path,
) -> pd.DataFrame:
    """Return one row for each data set, table row, protocol and metric.

    Columns: dataset, dataset_label, row (its order), label, parameters, protocol, metric, mean,
    sd (n - 1 in the divisor; NaN for one seed), seeds, converged (how many of them did: mean and sd
    are theirs), diverged (why the others did not), paper (in the unit of `mean`'s display:
    percent, or plain; NaN where nothing is published), paper_protocol. A row without `at` gives
    one row for each point of a sweep. A method's own protocol comes first; further ones, such as
    best_test, follow under their name and never replace it. What was not run is left out.

    Raises:
        InputError: the published table does not exist.
    """
    published = _published(table.get("expected"), expected_dir)
    rows = []
    for dataset in table["datasets"]:
        place = 0
        for row in table["rows"]:
            chosen = records[(records["dataset"] == dataset) & (records["method"] == row["method"])]
            for (_, parameters), point in chosen.groupby(["point", "parameters"], sort=True):
                values = json.loads(parameters)
                if any(values.get(key) != value for key, value in (row.get("at") or {}).items()):
                    continue
                for protocol in point["protocol"].drop_duplicates():
                    place += 1
                    for metric in table["metrics"]:
                        runs = point[(point["protocol"] == protocol) & (point["metric"] == metric)]
                        lost = runs["diverged"] != ""
                        numbers = runs["value"][~lost]
                        rows.append(
                            {
                                "dataset": dataset,
                                "dataset_label": datasets[dataset]["label"],
                                "row": place,
                                "label": _label(row, point, values, protocol),
                                "parameters": parameters,
                                "protocol": protocol,
                                "metric": metric,
                                "mean": numbers.mean(),
                                "sd": numbers.std(ddof=1),
                                "seeds": len(runs),
                                "converged": len(numbers),
                                "diverged": "; ".join(dict.fromkeys(runs["diverged"][lost])),
                                "paper": _paper_value(
                                    published, datasets[dataset], row, values, metric
                                ),
                                "paper_protocol": _paper_protocol(table.get("expected")),
                            }
                        )
    columns = ["dataset", "dataset_label", "row", "label", "parameters", "protocol", "metric"]
    columns += ["mean", "sd", "seeds", "converged", "diverged", "paper", "paper_protocol"]
    return pd.DataFrame(rows, columns=columns)


def _label(
    row: Mapping[str, Any], point: pd.DataFrame, values: Mapping[str, float], protocol: str
) -> str:
    label = str(row.get("label") or point["label"].iloc[0])
    if not row.get("at") and values:
        label += " (" + ", ".join(f"{key} = {value:g}" for key, value in values.items()) + ")"
    if not protocol.startswith("last"):
        label += f" [{protocol}]"
    return label


def _published(expected: Mapping[str, str] | None, folder: Path) -> pd.DataFrame | None:
    if expected is None:
        return None
    path = folder / f"{expected['paper']}.csv"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in folder.glob("*.csv"))) or "none"
        raise InputError(f"{path}: no such file with published numbers; there are: {known}")
    table = pd.read_csv(path)
    chosen = table[table["table"] == expected["table"]]
    if chosen.empty:
        known = ", ".join(table["table"].unique())
        raise InputError(f"{path}: has no table {expected['table']!r}; it has {known}")
    return chosen


def _paper_protocol(expected: Mapping[str, str] | None) -> str:
    return "" if expected is None else PAPER_PROTOCOLS.get(expected["paper"], "not stated")


def paper_method(template: str, values: Mapping[str, float], method: str = "") -> str:
    """Fill {method}, and of a sweep {w1} and {w2} = 1 - w1, into the name of a published row.

    {stem} is the method's name up to the first ``--``, where variants of one row are told apart.
    """
    known: dict[str, Any] = {"method": method, "stem": method.split("--")[0], **values}
    if "w1" in values:
        known["w2"] = round(1 - values["w1"], 10)
    try:
        return template.format(**known)
    except KeyError:
        # A point without the swept parameter has no published row.
        return template


def _paper_value(
    published: pd.DataFrame | None,
    dataset: Mapping[str, Any],
    row: Mapping[str, Any],
    values: Mapping[str, float],
    metric: str,
) -> float:
    if published is None or not row.get("paper_method") or metric not in _PAPER_METRICS:
        return float("nan")
    chosen = published[
        (published["dataset"] == dataset["benchmark"])
        & (published["method"] == paper_method(row["paper_method"], values, row.get("method", "")))
        & published["metric"].isin(_PAPER_METRICS[metric])
    ]
    if dataset["imbalance"] is not None:
        chosen = chosen[pd.to_numeric(chosen["imbalance"], errors="coerce") == dataset["imbalance"]]
    numbers = pd.to_numeric(chosen["value"], errors="coerce").dropna()
    # All are published in percent, also what is shown as a plain number here.
    unit = 100 if metric in PLAIN else 1
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
    published = _published(expected, expected_dir)
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

    Fractions are in percent, as mean ± sd. Where a paper has a number, it stands in a column of
    its own with the difference of our mean to it.
    """
    several = table["dataset"].nunique() > 1
    columns: list[str] = []
    cells: dict[str, dict[str, Cell]] = {label: {} for label in table["label"]}
    for key, part in table.groupby(["dataset_label", "metric"], sort=False):
        dataset, metric = map(str, key)
        title = METRIC_TITLES[metric]
        if several:
            one_metric = table["metric"].nunique() == 1
            title = dataset if one_metric else f"{dataset} {title}"
        columns.append(title)
        # Only numbers of the headline protocol compete; others are shown for comparison.
        whole = part["converged"] == part["seeds"]
        own = np.array([_competes(name) for name in part["protocol"]]) & whole.to_numpy()
        means = part["mean"].round(10)[own]
        best = means.min() if metric in LOW_IS_BETTER else means.max()
        for competes, (_, row) in zip(own, part.iterrows(), strict=True):
            is_best = len(means) > 1 and bool(competes) and round(row["mean"], 10) == best
            text = shown_number(row["mean"], row["sd"], metric)
            if 0 < row["converged"] < row["seeds"]:
                text += f" ({row['converged']}/{row['seeds']})"
            cells[row["label"]][title] = Cell(text, is_best)
        if part["paper"].notna().any():
            paper = f"paper, {title}" if several or table["metric"].nunique() > 1 else "paper"
            columns.append(paper)
            for _, row in part.iterrows():
                cells[row["label"]][paper] = Cell(_paper_text(row, metric))
    rows = [
        (label, [found.get(column, Cell("")) for column in columns])
        for label, found in cells.items()
    ]
    return Wide(columns, rows)


def _competes(protocol: str) -> bool:
    return protocol.startswith("last") or protocol == "best_val"


def shown_number(mean: float, sd: float, metric: str) -> str:
    """Return mean ± sd in the metric's unit; sd is left out where it is NaN."""
    if pd.isna(mean):
        return "–"
    if metric in PLAIN:
        return f"{mean:.3f}" + ("" if pd.isna(sd) else f" ± {sd:.3f}")
    return f"{100 * mean:.1f}" + ("" if pd.isna(sd) else f" ± {100 * sd:.1f}")


def _paper_text(row: pd.Series, metric: str) -> str:
    if pd.isna(row["paper"]):
        return ""
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
