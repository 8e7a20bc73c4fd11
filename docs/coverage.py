"""Write docs/coverage.md: for each table and figure of the papers, what makes it.

    python docs/coverage.py            rewrite the page
    python docs/coverage.py --check    fail if it would change, or a row has no target and no reason

Targets are found by planning the experiments of config/experiments and asking, for each cell of
their tables, which row of data/expected stands beside it. Reasons for what nobody makes are in
data/expected/left_out.yaml.
"""

from __future__ import annotations

import argparse
import fnmatch
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from ltpipe.config.experiment import load_experiment
from ltpipe.config.tables import BY_CLASS, BY_RANK
from ltpipe.data.readers.voc import CLASS_NAMES
from ltpipe.evaluation.published import (
    of_dataset,
    published_table,
    quoted_rows,
    read_published,
    rows_beside,
)
from ltpipe.plan.layout import build_plan

ROOT = Path(__file__).resolve().parents[1]
EXPECTED = ROOT / "data/expected"
EXPERIMENTS = (
    "ffn",
    "hrjba",
    "hrjba_baselines",
    "decoupling",
    "cws",
    "dlsa",
    "dlsa_released",
    "ecvl",
)
PAPERS = ("ffn", "hrjba", "cws", "ecvl", "dlsa")
PAGE = ROOT / "docs/coverage.md"


@dataclass
class Coverage:
    """A paper's published rows with `made` (experiments), `quoted` and `reason`, and its figures.

    Rows whose value is NA are not reported by the paper and ask for nothing.
    """

    paper: str
    rows: pd.DataFrame
    figures: pd.DataFrame


def cover() -> list[Coverage]:
    """Return what of each paper is made, quoted or left out."""
    covered = {}
    for paper in PAPERS:
        rows = read_published(paper, EXPECTED)
        covered[paper] = rows.assign(made="", quoted="", reason="")
    drawn: dict[str, list[str]] = {}
    for name in EXPERIMENTS:
        experiment = load_experiment(ROOT / f"config/experiments/{name}.yaml")
        spec = build_plan(experiment, expected=EXPECTED, identify=lambda entries: "").report.spec
        for paper, index, column in _targets(spec, experiment):
            column_of = covered[paper][column]
            for place in index:
                known = column_of[place].split()
                covered[paper].loc[place, column] = " ".join(dict.fromkeys([*known, name]))
        for figure in spec["figures"]:
            for shown in figure["of"]:
                drawn.setdefault(shown, []).append(name)
            if figure.get("paper_method") and figure["kind"] == "tail_accuracy":
                rows = covered[figure["expected"]["paper"]]
                wanted = [figure["paper_method"].format(size=size) for size in figure["sizes"]]
                rows.loc[rows["method"].isin(wanted), "made"] = name
    reasons = yaml.safe_load((EXPECTED / "left_out.yaml").read_text(encoding="utf-8"))
    figures = pd.read_csv(EXPECTED / "figures.csv")
    found = []
    for paper, rows in covered.items():
        own = [reason for reason in reasons if reason["paper"] == paper]
        for reason in own:
            rows.loc[_chosen(rows, reason), "reason"] = reason["reason"]
        mine = figures[figures["paper"].str.lower() == paper].copy()
        keys = mine["paper"] + " " + mine["figure"]
        mine["made"] = [" ".join(dict.fromkeys(drawn.get(key, []))) for key in keys]
        mine["reason"] = [
            next((r["reason"] for r in own if r.get("figure") == figure), "")
            for figure in mine["figure"]
        ]
        found.append(Coverage(paper, rows, mine))
    return found


def _chosen(rows: pd.DataFrame, reason: dict[str, Any]) -> pd.Series:
    chosen = pd.Series("figure" not in reason, index=rows.index)
    for column in ("table", "method", "metric", "dataset"):
        if column in reason:
            patterns = reason[column] if isinstance(reason[column], list) else [reason[column]]
            chosen &= rows[column].map(
                lambda value, patterns=patterns: any(
                    fnmatch.fnmatchcase(value, p) for p in patterns
                )
            )
    return chosen


def _targets(spec: dict[str, Any], experiment: Any) -> Iterator[tuple[str, Any, str]]:
    """Yield (paper, index of published rows, `made` or `quoted`) of an experiment's tables."""
    run = {(row["dataset"], row["method"]) for row in spec["results"]}
    for table in spec["tables"].values():
        published = published_table(table["expected"], EXPECTED)
        if published is None:
            continue
        paper = table["expected"]["paper"]
        for name in table["datasets"]:
            dataset = spec["datasets"][name]
            metrics = list(_metrics(table))
            patterns = table["expected"]["quoted"]
            yield paper, quoted_rows(of_dataset(published, dataset), patterns).index, "quoted"
            rows = table["rows"]
            if table["kind"] == "datasets":
                rows = [{"method": "", "paper_method": "dataset"}]
            for row in rows:
                if row["method"] and (name, row["method"]) not in run:
                    continue
                points = [{}]
                if row["method"]:
                    points = experiment.methods[row["method"]].settings.points()
                at = row.get("at") or {}
                for point in points:
                    if all(point.get(key) == value for key, value in at.items()):
                        for metric in metrics:
                            found = rows_beside(published, dataset, row, point, metric)
                            yield paper, found.index, "made"


def _metrics(table: dict[str, Any]) -> Iterator[str]:
    for metric in table["metrics"]:
        if metric in BY_CLASS:
            # Only VOC-LT is published class by class.
            yield from (f"{metric}:{name}" for name in CLASS_NAMES)
        elif metric in BY_RANK:
            start = 0
            for size in table["ranks"]:
                yield f"{metric}:{start + 1}-{start + size}"
                start += size
        else:
            yield metric


def missing(coverage: list[Coverage]) -> list[str]:
    """Return in words each published row and figure that has neither a target nor a reason."""
    lines = []
    for one in coverage:
        rows = one.rows
        lost = rows[
            (rows[["made", "quoted", "reason"]] == "").all(axis=1) & (rows["value"] != "NA")
        ]
        for row in lost.itertuples():
            lines.append(
                f"{one.paper} {row.table}, {row.dataset} ({row.imbalance}), {row.method}, "
                f"{row.backbone}: {row.metric}"
            )
        figures = one.figures[(one.figures[["made", "reason"]] == "").all(axis=1)]
        lines += [f"{row.paper} {row.figure}: {row.shows}" for row in figures.itertuples()]
    return lines


def page(coverage: list[Coverage]) -> str:
    """Return the page's text."""
    text = [
        "# What of the papers is made",
        "",
        "Written by `python docs/coverage.py` from the experiment files,",
        "[data/expected](../data/expected) and [its list of what is left",
        "out](../data/expected/left_out.yaml). *Quoted* numbers stand in our tables as the paper",
        "prints them, marked so, because it took them from other works. Figures that draw a method",
        "and show no result are not listed.",
        "",
    ]
    for one in coverage:
        rows = one.rows
        text += [f"## {one.paper.upper()}", ""]
        text += ["| table | numbers | made by | made | quoted | left out, and why |"]
        text += ["| --- | ---: | --- | ---: | ---: | --- |"]
        for table, part in rows.groupby("table", sort=False):
            made = part["made"] != ""
            quoted = ~made & (part["quoted"] != "")
            rest = part[~made & ~quoted]
            names = dict.fromkeys(" ".join(part["made"]).split())
            why = [
                f"{len(inside)}: {reason}"
                for reason, inside in rest[rest["reason"] != ""].groupby("reason", sort=False)
            ]
            absent = int(((rest["value"] == "NA") & (rest["reason"] == "")).sum())
            why += [f"{absent}: not reported by the paper"] if absent else []
            cells = [table, len(part), ", ".join(map(_link, names)), made.sum(), quoted.sum()]
            text.append("| " + " | ".join(map(str, cells)) + f" | {'; '.join(why) or '-'} |")
        if len(one.figures):
            text += [
                "",
                "| figure | shows | made by | left out, and why |",
                "| --- | --- | --- | --- |",
            ]
            for row in one.figures.itertuples():
                made = ", ".join(map(_link, row.made.split()))
                text.append(f"| {row.figure} | {row.shows} | {made or '-'} | {row.reason or '-'} |")
        text.append("")
    return "\n".join(text)


def _link(name: str) -> str:
    return f"[{name}](../config/experiments/{name}.yaml)"


def main() -> int:
    """Write or check the page; 1 where a check finds a difference or a row is missing."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing, fail on differences")
    check = parser.parse_args().check
    coverage = cover()
    lost = missing(coverage)
    for line in lost:
        print(f"neither target nor reason: {line}")
    differs = not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != page(coverage)
    if differs and not check:
        PAGE.write_text(page(coverage), encoding="utf-8")
        print(f"{PAGE.relative_to(ROOT)}: written")
    return int(bool(lost) or (check and differs))


if __name__ == "__main__":
    sys.exit(main())
