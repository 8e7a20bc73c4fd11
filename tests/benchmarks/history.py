"""The table of earlier measurements: rows are added and never replaced."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from measure import Result, machine, version

COLUMNS = [
    "date",
    "version",
    "extent",
    "name",
    "unit",
    "product",
    "peer",
    "ratio",
    "goal",
    "ceiling",
    "share",
    "remark",
    "machine",
]


def table_of(
    results: Sequence[Result], shares: Sequence[float | None], extent: str
) -> pd.DataFrame:
    """Return one run's rows; `extent` is quick, default or full."""
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    of_this_run = {"version": version(), "extent": extent, "machine": machine()}
    rows = [
        {
            "date": now,
            **of_this_run,
            "name": found.name,
            "unit": found.unit,
            "product": found.product,
            "peer": found.peer,
            "ratio": found.ratio,
            "goal": found.goal,
            "ceiling": found.ceiling,
            "share": share,
            "remark": found.remark,
        }
        for found, share in zip(results, shares, strict=True)
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


def check(path: Path) -> None:
    """See to it, before anything is measured, that rows can be added to a file.

    Raises:
        SystemExit: the file has other columns.
    """
    if path.is_file() and path.stat().st_size:
        header = path.read_text().splitlines()[0]
        if header != ",".join(COLUMNS):
            raise SystemExit(f"{path} has other columns ({header}); give another file")


def append(path: Path, rows: pd.DataFrame) -> None:
    """Add rows to a file of earlier ones, which stay as they are, byte for byte.

    Raises:
        SystemExit: the file has other columns.
    """
    check(path)
    text = rows.to_csv(index=False)
    if path.is_file() and path.stat().st_size:
        before = path.read_text()
        path.write_text(before.rstrip("\n") + "\n" + text.split("\n", 1)[1])
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def moves(table: pd.DataFrame) -> list[str]:
    """Return a line a row: how its ratio moved from run to run on one machine, oldest first.

    Quick runs use other sizes, so they are compared among themselves.
    """
    lines = []
    for (name, extent, where), group in table.groupby(["name", "extent", "machine"], sort=False):
        # Without a peer the value itself is what moved.
        column = "product" if group["ratio"].isna().all() else "ratio"
        unit = f" {group['unit'].iloc[-1]}" if column == "product" else ""
        steps = [
            f"{value:.2f}{unit} ({date[:10]}, {version})"
            for value, date, version in zip(
                group[column], group["date"], group["version"], strict=True
            )
        ]
        label = name if extent == "default" else f"{name} [{extent}]"
        lines.append(f"{label}, {where.split(',')[0]}: {' -> '.join(steps)}")
    return lines


def show(path: Path) -> None:
    """Print `moves` of a file.

    Raises:
        SystemExit: there is none.
    """
    if not path.is_file():
        raise SystemExit(f"{path}: no such file; write one with --csv {path}")
    for line in moves(pd.read_csv(path)):
        print(line)
