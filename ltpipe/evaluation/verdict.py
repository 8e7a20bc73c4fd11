"""Which method of a table to take: paired intervals of differences on the same test samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
from scipy.special import ndtri

from ltpipe.artifacts.manifest import read_manifest
from ltpipe.artifacts.reading import checked_file
from ltpipe.evaluation.draws import LEVEL, crossed_interval
from ltpipe.evaluation.metrics import GROUPS, group_of_classes
from ltpipe.evaluation.records import read_class_counts, read_test_counts
from ltpipe.evaluation.tables import LOW_IS_BETTER, METRIC_TITLES, wide

# Of fewer test samples an accuracy moves by chance alone: pages show it in grey.
FEW_SAMPLES = 30
_SHOWN = 5
# Whose means weigh test samples: differences of theirs have an interval over samples.
_MEANS = ("accuracy", "balanced_accuracy", *GROUPS)


@dataclass(frozen=True)
class Difference:
    """A mean difference of two methods on one metric, the better one less the other.

    `low` and `high` are the ends of its interval; NaN where nothing tells of its spread.
    """

    mean: float
    low: float
    high: float

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves zero out."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Choice:
    """What held-out training samples say of a table's rows.

    Attributes:
        rows: how many rows were tried on them.
        accuracy: the chosen row's mean class accuracy on them.
        tested: its metric on the test set.
        untried: labels of the rows that chose nothing by them.
        by_draw: where there are several draws, how often each row is the choice of a draw alone,
            and mean and deviation of the metric that these choices have on the test set.
    """

    rows: int
    accuracy: float
    tested: float
    untried: list[str]
    by_draw: tuple[dict[str, int], float, float] | None = None


@dataclass(frozen=True)
class Verdict:
    """The row of a table to take, beside the runner-up and the first row, on its first metric.

    Held-out training samples choose it where several rows were tried on them (`choice`), else the
    test set does. Differences are those on the test set.
    """

    dataset: str
    metric: str
    best: str
    runner_up: str | None
    lead: Difference | None
    first: str | None
    gain: Difference | None
    equals: list[str]
    choice: Choice | None = None


@dataclass(frozen=True)
class _Runs:
    """A row's runs by draw and seed: its values, and which test samples were right (N,)."""

    values: pd.Series
    right: dict[tuple[int, int], np.ndarray]


class Judge:
    """Compares the rows of a report's tables on the data set's test samples.

    Args:
        spec: what the workflow's plan says of the experiment.
        base: what its folders are relative to.
    """

    def __init__(self, spec: Mapping[str, Any], base: Path) -> None:
        self._spec = spec
        self._base = base
        self._folders = {
            (row["dataset"], row["method"], row.get("draw", 0), row["seed"]): base / row["folder"]
            for row in spec["results"]
        }
        self._right: dict[tuple[Path, int], np.ndarray] = {}

    def held_out(self, row: pd.Series) -> pd.Series:
        """Return a row's mean class accuracy on held-out training samples, by draw and seed.

        Empty where its method chose nothing by them.
        """
        found = {}
        for (dataset, method, draw, seed), folder in self._folders.items():
            if (dataset, method) == (row["dataset"], row["method"]):
                value = read_manifest(folder).get("held_out_accuracy")
                if value is not None:
                    found[draw, seed] = float(value)
        index = pd.MultiIndex.from_tuples(found, names=["draw", "seed"]) if found else None
        return pd.Series(list(found.values()), index, dtype=float)

    def difference(
        self, records: pd.DataFrame, one: pd.Series, other: pd.Series, metric: str
    ) -> Difference:
        """Return how far row `one` of a table is above `other` on `metric`, over common runs.

        The half width of the interval is the root of the summed squares of two: that of the mean
        over draws and seeds (`crossed_interval`; of one draw Student's paired t) and, for means of
        right answers, that over test samples (normal, strata being classes where classes count
        alike). Of one run only the second is known, of other metrics only the first.
        """
        a, b = self._runs(records, one, metric), self._runs(records, other, metric)
        runs = a.values.index.intersection(b.values.index)
        if not len(runs):
            return Difference(float("nan"), float("nan"), float("nan"))
        differences = a.values[runs] - b.values[runs]
        mean = float(differences.mean())
        low, high = crossed_interval(differences.unstack("seed").to_numpy(), LEVEL)
        halves = [] if np.isnan(low) else [(high - low) / 2]
        if metric in _MEANS:
            pairs = [a.right[run].astype(float) - b.right[run] for run in runs]
            per_sample = np.mean(pairs, axis=0)
            halves.append(self._half_width(str(one["dataset"]), metric, per_sample))
        half = float(np.sqrt(np.sum(np.square(halves)))) if halves else float("nan")
        return Difference(mean, mean - half, mean + half)

    def values(self, records: pd.DataFrame, row: pd.Series) -> pd.Series:
        """Return a row's values of its metric by draw and seed."""
        return self._of_row(records, row, str(row["metric"])).set_index(["draw", "seed"])["value"]

    def _of_row(self, records: pd.DataFrame, row: pd.Series, metric: str) -> pd.DataFrame:
        return records[
            (records["dataset"] == row["dataset"])
            & (records["method"] == row["method"])
            & (records["parameters"] == row["parameters"])
            & (records["protocol"] == row["protocol"])
            & (records["metric"] == metric)
            & (records["diverged"] == "")
        ]

    def _runs(self, records: pd.DataFrame, row: pd.Series, metric: str) -> _Runs:
        chosen = self._of_row(records, row, metric)
        right = {}
        if metric in _MEANS:
            columns = (chosen["draw"], chosen["seed"], chosen["point"])
            for draw, seed, point in zip(*columns, strict=True):
                folder = self._folders[(row["dataset"], row["method"], draw, seed)]
                right[draw, seed] = self._hits(folder, int(point))
        return _Runs(chosen.set_index(["draw", "seed"])["value"], right)

    def _hits(self, folder: Path, point: int) -> np.ndarray:
        if (folder, point) not in self._right:
            path = checked_file(folder, "predictions.h5")
            with h5py.File(path, "r", locking=False) as file:
                self._right[folder, point] = file["predicted"][point] == file["labels"][()]
                self._right.setdefault((folder, -1), file["labels"][()])
        return self._right[folder, point]

    def _half_width(self, dataset: str, metric: str, values: np.ndarray) -> float:
        """Return half the normal interval of a mean of per-sample differences (N,)."""
        labels = self._labels(dataset)
        weights = sample_weights(labels, self.shown_classes(dataset, metric), metric)
        strata = [labels == c for c in np.unique(labels)] if metric != "accuracy" else [weights > 0]
        variance = 0.0
        for inside in strata:
            number = int(inside.sum())
            weight = weights[inside].sum()
            if number > 1 and weight:
                variance += float(weight**2 * values[inside].var(ddof=1) / number)
        return float(ndtri((1 + LEVEL) / 2) * np.sqrt(variance))

    def _labels(self, dataset: str) -> np.ndarray:
        return next(
            labels
            for (folder, point), labels in self._right.items()
            if point == -1
            and folder in {f for key, f in self._folders.items() if key[0] == dataset}
        )

    def shown_classes(self, dataset: str, metric: str) -> np.ndarray:
        """Return which classes (C,) a metric of a data set is about."""
        described = self._spec["datasets"][dataset]
        names, counts = read_class_counts(self._base / described["folder"])
        if metric not in GROUPS:
            return np.ones(len(names), dtype=bool)
        return np.array(group_of_classes(counts, described["groups"])) == metric

    def samples(self, dataset: str, metric: str) -> int:
        """Return how many test samples stand behind a metric of a data set."""
        described = self._spec["datasets"][dataset]
        counts = np.array(read_test_counts(self._base / described["folder"]))
        return int(counts[self.shown_classes(dataset, metric)].sum())


def sample_weights(labels: np.ndarray, classes: np.ndarray, metric: str) -> np.ndarray:
    """Return (N,) weights whose sum of right answers is the metric.

    Accuracy weighs samples alike; the others are means over the classes (C,) that are shown, each
    class's samples sharing its weight.
    """
    if metric == "accuracy":
        return np.full(len(labels), 1 / len(labels))
    counts = np.bincount(labels, minlength=len(classes))
    counted = classes & (counts > 0)
    shares = np.zeros(len(classes))
    shares[counted] = 1 / (counts[counted] * counted.sum())
    return shares[labels]


def _competing(part: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of one data set and metric that compete, the best first."""
    whole = (part["converged"] == part["seeds"]) & part["mean"].notna()
    own = part["protocol"].map(lambda name: name.startswith("last") or name == "best_val")
    metric = str(part["metric"].iloc[0])
    return part[whole & own].sort_values("mean", ascending=metric in LOW_IS_BETTER, kind="stable")


def mark_winners(judge: Judge, records: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    """Return a table with a column `winner`: whether a row that is best may be called so.

    That is where it is clearly better than the runner-up; of what tables alone derive, always.
    """
    table = table.assign(winner=~table["metric"].isin(METRIC_TITLES))
    for (_, metric), part in table.groupby(["dataset", "metric"], sort=False):
        if metric not in METRIC_TITLES:
            continue
        ranked = _competing(part)
        if len(ranked) < 2:
            continue
        first, second = ranked.iloc[0], ranked.iloc[1]
        if judge.difference(records, first, second, str(metric)).is_clear:
            table.loc[first.name, "winner"] = True
    return table


def judge_table(judge: Judge, records: pd.DataFrame, table: pd.DataFrame) -> list[Verdict]:
    """Return a verdict on the table's first metric for each of its data sets with several rows."""
    found: list[Verdict] = []
    metric = str(table["metric"].iloc[0])
    if metric not in METRIC_TITLES:
        return found
    for _, part in table[table["metric"] == metric].groupby("dataset", sort=False):
        ranked = _competing(part)
        if len(ranked) < 2:
            continue
        ranked, choice = _chosen(judge, records, ranked)
        best = ranked.iloc[0]
        others = [
            (row, judge.difference(records, best, row, metric)) for _, row in ranked[1:].iterrows()
        ]
        equals = [str(row["label"]) for row, difference in others if not difference.is_clear]
        first = part.iloc[0]
        gain = next((d for row, d in others if row["row"] == first["row"]), None)
        found.append(
            Verdict(
                dataset=str(best["dataset_label"]),
                metric=metric,
                best=str(best["label"]),
                runner_up=str(others[0][0]["label"]),
                lead=others[0][1],
                first=str(first["label"]) if gain is not None else None,
                gain=gain,
                equals=equals,
                choice=choice,
            )
        )
    return found


def _chosen(
    judge: Judge, records: pd.DataFrame, ranked: pd.DataFrame
) -> tuple[pd.DataFrame, Choice | None]:
    """Return the competing rows in the order of held-out samples, where several were tried on them.

    Those that were not tried follow. Of equals, the one that stands first in the table leads.
    """
    if str(ranked["metric"].iloc[0]) not in ("accuracy", "balanced_accuracy"):
        return ranked, None
    runs = {place: judge.values(records, row) for place, row in ranked.iterrows()}
    held_out = {place: judge.held_out(row) for place, row in ranked.iterrows()}
    places = ranked.sort_index().index
    tried = [p for p in places if set(runs[p].index) <= set(held_out[p].index)]
    if len(tried) < 2:
        return ranked, None
    scores = pd.DataFrame({place: held_out[place] for place in tried})
    order = list(scores.mean().sort_values(ascending=False, kind="stable").index)
    draws = scores.groupby("draw").mean()
    by_draw = None
    if len(draws) > 1:
        picked = draws.idxmax(axis="columns")
        tested = [runs[place].xs(draw, level="draw").mean() for draw, place in picked.items()]
        counts = {str(name): int(n) for name, n in ranked["label"][picked].value_counts().items()}
        by_draw = counts, float(np.mean(tested)), float(np.std(tested, ddof=1))
    rest = [place for place in ranked.index if place not in tried]
    best = order[0]
    choice = Choice(
        rows=len(tried),
        accuracy=float(scores[best].mean()),
        tested=float(ranked["mean"][best]),
        untried=[str(label) for label in ranked["label"][rest]],
        by_draw=by_draw,
    )
    return ranked.loc[[*order, *rest]], choice


def column_samples(judge: Judge, table: pd.DataFrame) -> dict[str, int]:
    """Return the number of test samples behind each column of the wide table that is a mean."""
    if not table["metric"].isin(METRIC_TITLES).all():
        return {}
    columns = [name for name in wide(table).columns if not name.startswith("paper")]
    groups = table.groupby(["dataset_label", "metric"], sort=False)
    return {
        column: judge.samples(str(part["dataset"].iloc[0]), str(metric))
        for column, ((_, metric), part) in zip(columns, groups, strict=True)
        if metric in _MEANS
    }


def verdicts(
    judge: Judge, records: pd.DataFrame, table: pd.DataFrame, seeds: Sequence[int]
) -> list[str]:
    """Return for each data set of a table which method to take and why, in words."""
    found = judge_table(judge, records, table)
    several = table["dataset"].nunique() > 1
    lines = []
    for verdict in found:
        title = METRIC_TITLES.get(verdict.metric, verdict.metric)
        dataset = table["dataset"][table["dataset_label"] == verdict.dataset].iloc[0]
        draws = records["draw"][records["dataset"] == dataset].nunique()
        samples = judge.samples(str(dataset), verdict.metric)
        text = in_words(verdict, title, samples, seeds, draws)
        lines.append(f"{verdict.dataset}: {text}" if several else text)
    return lines


def in_words(
    verdict: Verdict, title: str, samples: int, seeds: Sequence[int], draws: int = 1
) -> str:
    """Say which method to take and why, with the intervals."""
    points = "points of " + title
    if verdict.choice is not None:
        parts = _by_choice(verdict, verdict.choice, title)
    else:
        parts = _by_test(verdict, points)
    over = [f"{n} {what}" for n, what in ((draws, "draws"), (len(seeds), "seeds")) if n > 1]
    over = [", ".join(over), f"{samples:,} test samples"] if over else [f"{samples:,} test samples"]
    unsaid = "; it does not tell of another draw of the training data" if draws == 1 else ""
    parts.append(
        f"Brackets: {100 * LEVEL:g} % interval of the paired difference over {' and '.join(over)}"
        f"{unsaid}"
    )
    return ". ".join(parts) + "."


def _by_test(verdict: Verdict, points: str) -> list[str]:
    if verdict.lead is not None and verdict.lead.is_clear:
        parts = [
            f"Take {verdict.best}: it is {_shown(verdict.lead)} {points} above "
            f"{verdict.runner_up}, the next best"
        ]
    else:
        parts = [
            f"Take {verdict.best}, or whichever of {', '.join([verdict.best, *verdict.equals])} "
            "suits you best: these data do not tell them apart "
            f"({verdict.best} less {verdict.runner_up}: {_shown(verdict.lead)} {points})"
        ]
    if verdict.gain is not None and verdict.first not in (None, verdict.runner_up):
        parts.append(f"Beside {verdict.first} it gains {_shown(verdict.gain)}")
    return parts


def _by_choice(verdict: Verdict, choice: Choice, title: str) -> list[str]:
    parts = [
        f"Take {verdict.best}: of {choice.rows} methods it is the best on held-out training "
        f"samples (mean class accuracy {100 * choice.accuracy:.1f} %); on the test set its "
        f"{title} is {100 * choice.tested:.1f} %"
    ]
    beside = f"points there: {_shown(verdict.lead)} beside {verdict.runner_up}, the next"
    if verdict.gain is not None and verdict.first not in (None, verdict.runner_up):
        beside += f", and {_shown(verdict.gain)} beside {verdict.first}"
    parts.append(beside[0].upper() + beside[1:])
    if verdict.equals:
        parts.append(f"The test set does not tell it from {_some(verdict.equals)}")
    if choice.untried:
        parts.append(f"Not tried on held-out samples: {_some(choice.untried)}")
    if choice.by_draw is not None:
        counts, mean, deviation = choice.by_draw
        shares = ", ".join(f"{name} {number}" for name, number in counts.items())
        parts.append(
            f"Chosen in each draw alone ({shares} of {sum(counts.values())}), it is "
            f"{100 * mean:.1f} ± {100 * deviation:.1f} %"
        )
    return parts


def _some(labels: Sequence[str]) -> str:
    more = f" and {len(labels) - _SHOWN} more" if len(labels) > _SHOWN else ""
    return ", ".join(labels[:_SHOWN]) + more


def _shown(difference: Difference | None) -> str:
    if difference is None or np.isnan(difference.mean):
        return "–"
    text = f"{100 * difference.mean:+.1f}"
    if np.isnan(difference.low):
        return text
    return f"{text} [{100 * difference.low:+.1f}, {100 * difference.high:+.1f}]"
