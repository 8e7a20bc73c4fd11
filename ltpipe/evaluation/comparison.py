"""Methods of several experiments side by side: paired differences over seeds to one of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from ltpipe.artifacts.manifest import MANIFEST, read_manifest
from ltpipe.evaluation.draws import crossed_interval
from ltpipe.evaluation.page import render
from ltpipe.evaluation.points import shown_points
from ltpipe.evaluation.records import read_records
from ltpipe.evaluation.tables import (
    LOW_IS_BETTER,
    METRIC_TITLES,
    PLAIN,
    Cell,
    Wide,
    markdown_rows,
    shown_number,
)
from ltpipe.plan.stages import LATEST
from ltpipe.plan.workload import load_workload
from ltpipe.utils.errors import InputError, nearest
from ltpipe.utils.io import write_text_atomic

COLUMNS = ["dataset", "method", "seeds", "mean", "sd"]
PAIRED = ["pairs", "difference", "sd_difference", "low", "high", "better", "worse", "equal"]


@dataclass(frozen=True)
class Comparison:
    """What was compared: `table` has a row for each data set and method.

    Columns: dataset, method, seeds, mean, sd, and against `reference` over the seeds that both
    have: pairs, difference (the mean of method less reference), sd_difference, low and high (the
    ends of its confidence interval; NaN below two pairs), and the numbers of seeds on which the
    method was better, worse, equal. NaN in the row of the reference itself.
    """

    table: pd.DataFrame
    metric: str
    reference: str
    level: float


def read_experiments(paths: Sequence[Path]) -> pd.DataFrame:
    """Return the shown points of finished experiments as one table of records.

    A path is a results/experiments/NAME folder or an experiment file, whose results are looked for
    below the working folder. Columns: dataset, row (the method and its point), draw, seed, metric,
    value, experiment, protocol. Data sets are the same when they were drawn the same; runs that two
    experiments share count once; runs that did not converge are left out. Where two experiments
    mean different things by one name, the name gets the experiment's in brackets.

    Raises:
        InputError: an experiment has not been run, or a file of it is damaged.
    """
    if not paths:
        raise InputError("name at least one experiment: a folder of results or a file")
    tables = []
    for spec, base in (opened for path in paths for opened in _open(path)):
        records = read_records(spec, base)
        shown = shown_points(spec, records[(records["class"].isna()) & (records["diverged"] == "")])
        folders = {
            (r["dataset"], r.get("draw", 0), r["method"], r["seed"]): r["folder"]
            for r in spec["results"]
        }
        keys = zip(shown["dataset"], shown["draw"], shown["method"], shown["seed"], strict=True)
        tables.append(
            shown.assign(
                experiment=spec["experiment"],
                folder=[folders[key] for key in keys],
                drawn=shown["dataset"].map({k: v["folder"] for k, v in spec["datasets"].items()}),
                dataset=shown["dataset"].map({k: v["label"] for k, v in spec["datasets"].items()}),
            )
        )
    found = pd.concat(tables, ignore_index=True)
    found = found.drop_duplicates(["folder", "parameters", "metric"])
    found = _tell_apart(found, "dataset", found["drawn"])
    # A folder without its seed is what a method is: its settings and all before them.
    found = _tell_apart(found, "row", found["folder"].str.rsplit("/seed", n=1).str[0])
    columns = ["dataset", "row", "draw", "seed", "metric", "value", "experiment", "protocol"]
    return found[columns]


def _tell_apart(found: pd.DataFrame, column: str, identity: pd.Series) -> pd.DataFrame:
    """Add the experiment's name where one name stands for several identities on a data set."""
    names = [column] if column == "dataset" else ["dataset", "draw", column]
    keys = [found[name] for name in names]
    several = identity.groupby(keys).transform("nunique") > 1
    told = found[column].where(~several, found[column] + " [" + found["experiment"] + "]")
    return found.assign(**{column: told})


def _open(path: Path) -> list[tuple[dict[str, Any], Path]]:
    """Return the report's spec and base of an experiment, or of each that a collection includes."""
    if path.is_dir():
        folder = path / LATEST if (path / LATEST).exists() else path
        # results/experiments/NAME/DIGEST: artifacts are relative to what lies above.
        base = folder.resolve().parents[3]
    else:
        folder, base = Path(load_workload(path).folder), Path()
    if not (folder / MANIFEST).is_file():
        raise InputError(f"{folder}: there is no finished experiment; run it first")
    spec = read_manifest(folder)["spec"]
    if spec.get("kind") == "overview":
        return [one for report in spec["reports"] for one in _open(base / report)]
    if spec.get("kind") != "report":
        raise InputError(f"{folder}: not an experiment; name a folder results/experiments/NAME")
    return [(spec, base)]


def compare(
    records: pd.DataFrame,
    metric: str = "accuracy",
    reference: str | None = None,
    level: float = 0.95,
) -> Comparison:
    """Compare the methods of `read_experiments` with one of them, the first unless named.

    Raises:
        InputError: an unknown metric, reference or level.
    """
    if metric not in METRIC_TITLES:
        known = ", ".join(METRIC_TITLES)
        raise InputError(f"unknown metric {metric!r}{nearest(metric, METRIC_TITLES)}: {known}")
    if not 0 < level < 1:
        raise InputError(f"the level must lie between 0 and 1, not {level:g}")
    chosen = records[(records["metric"] == metric) & records["value"].notna()]
    if "draw" not in chosen:
        chosen = chosen.assign(draw=0)
    if chosen.empty:
        raise InputError(f"no run of these experiments has the metric {metric!r}")
    methods = list(dict.fromkeys(chosen["row"]))
    reference = methods[0] if reference is None else reference
    if reference not in methods:
        raise InputError(
            f"no method is called {reference!r}{nearest(reference, methods)}; "
            f"there are: {', '.join(methods)}"
        )
    values = {
        key: part.set_index(["draw", "seed"])["value"]
        for key, part in chosen.groupby(["dataset", "row"], sort=False)
    }
    sign = -1 if metric in LOW_IS_BETTER else 1
    rows = []
    for (dataset, method), own in values.items():
        row = {"dataset": dataset, "method": method, "seeds": len(own)}
        row |= {"mean": own.mean(), "sd": own.std(ddof=1)}
        other = values.get((dataset, reference))
        if method != reference and other is not None:
            row |= _paired(own, other, sign, level)
        rows.append(row)
    table = pd.DataFrame(rows, columns=[*COLUMNS, *PAIRED])
    return Comparison(table, metric, reference, level)


def _paired(own: pd.Series, other: pd.Series, sign: int, level: float) -> dict[str, float]:
    seeds = own.index.intersection(other.index)
    paired = own[seeds] - other[seeds]
    differences = paired.to_numpy()
    low, high = crossed_interval(paired.unstack("seed").to_numpy(), level)
    return {
        "pairs": len(seeds),
        "difference": differences.mean() if len(seeds) else float("nan"),
        "sd_difference": differences.std(ddof=1) if len(seeds) > 1 else float("nan"),
        "low": low,
        "high": high,
        "better": int((sign * differences > 0).sum()),
        "worse": int((sign * differences < 0).sum()),
        "equal": int((differences == 0).sum()),
    }


def tally(comparison: Comparison) -> pd.DataFrame:
    """Return a row a method: wins and losses on data sets, and on single seeds.

    Columns: method, datasets (those on which it meets the reference), wins and losses (the mean
    is better or worse), clear_wins and clear_losses (and the interval leaves zero out), better,
    worse, equal (seeds of all data sets).
    """
    table = comparison.table
    sign = -1 if comparison.metric in LOW_IS_BETTER else 1
    met = table[table["pairs"] > 0]
    gain = sign * met["difference"]
    clear = (met["low"] > 0) | (met["high"] < 0)
    counted = pd.DataFrame(
        {
            "method": met["method"],
            "datasets": 1,
            "wins": gain > 0,
            "losses": gain < 0,
            "clear_wins": (gain > 0) & clear,
            "clear_losses": (gain < 0) & clear,
            "better": met["better"],
            "worse": met["worse"],
            "equal": met["equal"],
        }
    )
    summed = counted.groupby("method", sort=False).sum()
    return summed.astype(int).reset_index()


def arranged(comparison: Comparison) -> tuple[Wide, Wide]:
    """Return the means, and the differences with their intervals: methods by data sets."""
    table, metric = comparison.table, comparison.metric
    datasets = list(dict.fromkeys(table["dataset"]))
    cells = {(row["dataset"], row["method"]): row for _, row in table.iterrows()}
    means, differences = [], []
    for method in dict.fromkeys(table["method"]):
        found = [cells.get((dataset, method)) for dataset in datasets]
        means.append((method, [Cell("" if row is None else _mean(row, metric)) for row in found]))
        if method != comparison.reference:
            texts = ["" if row is None else _difference(row, metric) for row in found]
            differences.append(
                (method, [Cell(t, _is_clear(r)) for t, r in zip(texts, found, strict=True)])
            )
    return Wide(datasets, means), Wide(datasets, differences)


def _mean(row: pd.Series, metric: str) -> str:
    return f"{shown_number(row['mean'], row['sd'], metric)} (n = {row['seeds']})"


def _difference(row: pd.Series, metric: str) -> str:
    if pd.isna(row["pairs"]) or not row["pairs"]:
        return "no common seed"
    unit, digits = (1, 3) if metric in PLAIN else (100, 1)
    text = f"{unit * row['difference']:+.{digits}f}"
    if pd.isna(row["low"]):
        return f"{text} (one seed)"
    low, high = (f"{unit * row[end]:+.{digits}f}" for end in ("low", "high"))
    return f"{text} [{low}, {high}]"


def _is_clear(row: pd.Series | None) -> bool:
    return row is not None and bool(row["low"] > 0 or row["high"] < 0)


def note_of(comparison: Comparison) -> str:
    """Say in words what the differences are and what they do not say."""
    table = comparison.table
    better = "lower" if comparison.metric in LOW_IS_BETTER else "higher"
    parts = [
        f"Test {METRIC_TITLES[comparison.metric]}"
        + ("" if comparison.metric in PLAIN else " in percent")
        + f", {better} is better; mean ± sd over n seeds",
        f"differences are to {comparison.reference}, paired over the seeds that both have, with "
        f"the {100 * comparison.level:g} % t interval of their mean; bold: it leaves zero out",
        "intervals tell of the seeds of these runs, and of draws of the data where there are "
        "several; they are not corrected for how many methods are compared",
    ]
    if (table["pairs"] == 1).any():
        parts.append("with one common seed there is no interval")
    return ". ".join(part[0].upper() + part[1:] for part in parts) + "."


def to_markdown(comparison: Comparison) -> str:
    """Return means, differences and wins as Markdown tables."""
    means, differences = arranged(comparison)
    title = METRIC_TITLES[comparison.metric]
    parts = [f"### Test {title}\n\n{markdown_rows(means)}"]
    if differences.rows:
        parts.append(f"### Difference to {comparison.reference}\n\n{markdown_rows(differences)}")
        counts = tally(comparison)
        rows = [
            (row["method"], [Cell(str(row[key])) for key in counts.columns[1:]])
            for _, row in counts.iterrows()
        ]
        parts.append(f"### Wins and losses\n\n{markdown_rows(Wide(_tally_titles(counts), rows))}")
    return "\n\n".join([*parts, note_of(comparison)]) + "\n"


def _tally_titles(counts: pd.DataFrame) -> list[str]:
    titles = {"better": "seeds better", "worse": "seeds worse", "equal": "seeds equal"}
    return [titles.get(name, name.replace("_", " ")) for name in counts.columns[1:]]


def write_comparison(comparison: Comparison, experiments: Sequence[str], output: Path) -> None:
    """Write comparison.csv, comparison.md and comparison.html to the folder `output`."""
    output.mkdir(parents=True, exist_ok=True)
    means, differences = arranged(comparison)
    counts = tally(comparison)
    page = render(
        "comparison.html.jinja",
        title=f"Test {METRIC_TITLES[comparison.metric]} of {', '.join(experiments)}",
        reference=comparison.reference,
        means=means,
        differences=differences,
        tally_titles=_tally_titles(counts),
        tally=[list(row) for row in counts.itertuples(index=False)],
        note=note_of(comparison),
    )
    write_text_atomic(output / "comparison.csv", comparison.table.to_csv(index=False))
    write_text_atomic(output / "comparison.md", to_markdown(comparison))
    write_text_atomic(output / "comparison.html", page)
