"""Leave out of an experiment what needs data sets or weights that are not there."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from ltpipe.config.experiment import Experiment, Missing, match
from ltpipe.config.figures import Ranking, TrainingCurves

# From the settings of a data set or backbone to why its files are not there; None where they are.
Absent = Callable[[Any], str | None]
Pair = tuple[str, str]  # data set, method


def without_missing(experiment: Experiment, absent: Absent) -> Experiment:
    """Return the experiment without the jobs, tables and figures that need what is absent.

    A table stays while something of it is left. A figure goes with anything that it shows.
    `missing` of the result says what was left out and why; it may have no job left.
    """
    reasons = _reasons(experiment, absent)
    if not reasons:
        return experiment
    pairs: dict[Pair, None] = {(dataset, method): None for dataset, method, _ in experiment.jobs}
    lost = {pair: found for pair in pairs if (found := _lacks(experiment, pair, reasons))}
    kept = set(pairs) - set(lost)
    tables = {
        name: table
        for name, table in experiment.file.tables.items()
        if kept & _shown_by(experiment, table)
    }
    figures = [figure for figure in experiment.file.figures if _stays(experiment, figure, kept)]
    return replace(
        experiment,
        file=experiment.file.model_copy(update={"tables": tables, "figures": figures}),
        jobs=[job for job in experiment.jobs if job[:2] in kept],
        missing=_list(experiment, reasons, lost),
    )


def _reasons(experiment: Experiment, absent: Absent) -> dict[Pair, str]:
    """Return why parts of the experiment are absent, by section and name."""
    found = {
        (section, name): absent(getattr(experiment, section)[name].settings)
        for section, name in experiment.parts_in_use()
    }
    return {part: why for part, why in found.items() if why is not None}


def _lacks(experiment: Experiment, pair: Pair, reasons: dict[Pair, str]) -> list[str]:
    dataset, method = pair
    needed = [("datasets", dataset)]
    needed += [("backbones", name) for name in experiment.methods[method].settings.roles().values()]
    return [reasons[part] for part in needed if part in reasons]


def _shown_by(experiment: Experiment, table: Any) -> set[Pair]:
    datasets = match(table.datasets, experiment.datasets, "tables")
    methods = match([row.method for row in table.rows], experiment.methods, "tables")
    return {(dataset, method) for dataset in datasets for method in methods}


def _stays(experiment: Experiment, figure: Any, kept: set[Pair]) -> bool:
    if isinstance(figure, Ranking):
        return bool(kept)
    methods = {method for dataset, method in kept if dataset == figure.dataset}
    roles = [experiment.methods[method].settings.roles().values() for method in methods]
    backbones = {backbone for found in roles for backbone in found}
    if isinstance(figure, TrainingCurves):
        return any(name in backbones for name in _names(figure.backbones, experiment.backbones))
    wanted = [*getattr(figure, "methods", []), *getattr(figure, "lines", {}).values()]
    wanted += getattr(figure, "levels", {}).values()
    wanted += [figure.method] if hasattr(figure, "method") else []
    shown = [*getattr(figure, "backbones", [])]
    shown += [figure.backbone] if hasattr(figure, "backbone") else []
    if getattr(figure, "fused", None) is not None:
        shown += [figure.fused.ce, figure.fused.kps]
    # What was never asked for on this data set is for the figure itself to refuse.
    asked = {method for dataset, method, _ in experiment.jobs if dataset == figure.dataset}
    return (
        bool(methods)
        and asked.intersection(_names(wanted, experiment.methods)) <= methods
        and backbones.issuperset(_names(shown, experiment.backbones))
    )


def _names(patterns: list[str], names: Any) -> list[str]:
    return match(patterns, names, "figures") if patterns else []


def _list(
    experiment: Experiment, reasons: dict[Pair, str], lost: dict[Pair, list[str]]
) -> tuple[Missing, ...]:
    tables = {
        f"{experiment.file.experiment}/{name}": {
            why for pair in _shown_by(experiment, table) for why in lost.get(pair, [])
        }
        for name, table in experiment.file.tables.items()
    }
    listed = []
    for why in dict.fromkeys(reasons.values()):
        names = [
            getattr(experiment, section)[name].settings.label or name
            if section == "datasets"
            else name
            for (section, name), found in reasons.items()
            if found == why
        ]
        hit = [table for table, found in tables.items() if why in found]
        listed.append(Missing(why, tuple(names), tuple(hit)))
    return tuple(listed)


def merged(listed: Iterable[Missing]) -> tuple[Missing, ...]:
    """Return one entry for each reason, the names and tables of several experiments together."""
    found: dict[str, tuple[dict[str, None], dict[str, None]]] = {}
    for entry in listed:
        names, tables = found.setdefault(entry.why, ({}, {}))
        names.update(dict.fromkeys(entry.names))
        tables.update(dict.fromkeys(entry.tables))
    return tuple(
        Missing(why, tuple(names), tuple(tables)) for why, (names, tables) in found.items()
    )


def describe_missing(listed: Iterable[Missing], left_out: Iterable[str] = ()) -> str:
    """Say in lines of text what is not there, what to put where, and what it is left out of."""
    lines = ["not there, and left out with all that needs it:"]
    for entry in listed:
        lines.append(f"- {', '.join(entry.names)}: {entry.why}")
        if entry.tables:
            lines.append(f"  in the tables {', '.join(entry.tables)}")
    if experiments := ", ".join(left_out):
        lines.append(f"- nothing of these experiments can run: {experiments}")
    return "\n".join(lines)
