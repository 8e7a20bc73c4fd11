"""One page over many experiments: all methods by data set, links to reports, what is missing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from ltpipe.artifacts.manifest import read_manifest
from ltpipe.config.experiment import Missing
from ltpipe.evaluation.comparison import read_experiments
from ltpipe.evaluation.page import render
from ltpipe.evaluation.tables import Cell, Wide, shown_number
from ltpipe.plan.missing import describe_missing
from ltpipe.utils.io import write_text_atomic

METRICS = ("accuracy", "many", "medium", "few")
_COLUMNS = ["dataset", "method", "experiment", "protocol", "seeds"]


def write_overview(spec: Mapping[str, Any], output: Path, base: Path = Path()) -> str:
    """Write results.csv, report.html and summary.txt to `output`; return the summary.

    Args:
        spec: what the workflow's plan says of the collection.
        output: results/experiments/NAME/DIGEST.
        base: what the spec's folders are relative to.

    Raises:
        InputError: an included experiment has not been run, or a file of it is damaged.
    """
    folders = [Path(name) for name in spec["reports"]]
    reports = {folder: read_manifest(base / folder)["spec"] for folder in folders}
    table = summarise(read_experiments([base / folder for folder in folders]))
    missing = [Missing.from_json(entry) for entry in spec["missing"]]
    absent = describe_missing(missing, spec["left_out"]) if missing else ""
    page = render(
        "overview.html.jinja",
        spec=spec,
        experiments=[
            {
                "name": folder.parent.name,
                "page": f"../../{folder.parent.name}/{folder.name}/report.html",
                **_count(report),
            }
            for folder, report in reports.items()
        ],
        datasets=[(name, wide_of(part)) for name, part in table.groupby("dataset", sort=False)],
        note=NOTE,
    )
    lines = [f"{spec['title']}: {len(reports)} experiments, {len(table)} results"]
    lines += [f"  {folder.parent.name}: {folder / 'report.html'}" for folder in reports]
    summary = "\n".join([*lines, *([absent] if absent else [])]) + "\n"
    write_text_atomic(output / "results.csv", table.to_csv(index=False))
    write_text_atomic(output / "summary.txt", summary)
    write_text_atomic(output / "report.html", page)
    return summary


NOTE = (
    "Test accuracy in percent, mean ± sd over n seeds, of each method's own protocol; the best "
    "mean of a data set comes first. Methods marked [oracle] are told of each test sample whether "
    "its class is a head or a tail class, and stand last. Runs that two experiments share count "
    "once; runs that did not converge are left out. Backbones differ from experiment to "
    "experiment, so the order says which row is highest and not which idea is best."
)


def _count(spec: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "title": spec["title"],
        "tables": len(spec["tables"]),
        "figures": len(spec["figures"]),
        "results": len(spec["results"]),
    }


def summarise(records: pd.DataFrame) -> pd.DataFrame:
    """Return a row for each data set and method of `read_experiments`, the best mean first.

    Columns: dataset, method, experiment, protocol, seeds, and of each of METRICS the mean over
    seeds and NAME_sd (n - 1 in the divisor; NaN for one seed or several draws), as fractions.
    Methods of protocol `oracle` come after all others.
    """
    chosen = records[records["metric"].isin(METRICS)]
    rows = []
    for (dataset, method), part in chosen.groupby(["dataset", "row"], sort=False):
        row: dict[str, Any] = {"dataset": dataset, "method": method}
        row |= {key: part[key].iloc[0] for key in ("experiment", "protocol")}
        row["seeds"] = part["seed"].nunique()
        for metric in METRICS:
            values = part["value"][part["metric"] == metric]
            # Runs of several draws are not independent: `ltpipe compare` has their intervals.
            sd = values.std(ddof=1) if part["draw"].nunique() == 1 else float("nan")
            row |= {metric: values.mean(), f"{metric}_sd": sd}
        rows.append(row)
    columns = [*_COLUMNS, *(name for metric in METRICS for name in (metric, f"{metric}_sd"))]
    table = pd.DataFrame(rows, columns=columns)
    place = {name: number for number, name in enumerate(table["dataset"].unique())}
    keys = pd.DataFrame(
        {
            "dataset": table["dataset"].map(place),
            "oracle": table["protocol"].str.startswith("oracle"),
            "low": -table["accuracy"],
        }
    )
    order = keys.sort_values(["dataset", "oracle", "low"], kind="stable").index
    return table.loc[order].reset_index(drop=True)


def wide_of(part: pd.DataFrame) -> Wide:
    """Return one data set's rows of `summarise` as a table of texts."""
    rows = []
    for _, row in part.iterrows():
        label = row["method"] + (" [oracle]" if row["protocol"].startswith("oracle") else "")
        texts = [shown_number(row[metric], row[f"{metric}_sd"], metric) for metric in METRICS]
        cells = [*texts, str(row["seeds"]), row["experiment"]]
        rows.append((label, [Cell(text) for text in cells]))
    return Wide([*METRICS, "n", "experiment"], rows)
