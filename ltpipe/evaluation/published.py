"""The papers' numbers: which of them belong beside a row of a table."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from ltpipe.config.base import fill_braces
from ltpipe.utils.errors import InputError

_METRICS = {
    "accuracy": "acc",
    "many": "acc_many",
    "medium": "acc_medium",
    "few": "acc_few",
    "macro_f1": "f1",
    "mcc": "mcc",
    "nmi": "nmi",
    "auc": "auc",
    "train_images": "n_train",
    "test_images": "n_test",
    "classes": "n_class",
    "image_size": "image_size",
}
_OF_GROUPS = {
    "rank_accuracy": "acc",
    "rank_error": "error",
    "class_accuracy": "acc",
    "class_error": "error",
    "class_test_images": "n_test",
}
# Names that HRJBA's Table 5 has for groups of ranks.
_GROUP_NAMES = {
    "acc:Class1-8": "acc_head8",
    "acc:Class9-15": "acc_mid7",
    "acc:Class16-20": "acc_tail5",
}
# What HRJBA's tables call classes of VOC whose names are longer.
_CLASS_NAMES = {"diningtable": "Table", "pottedplant": "Plant", "tvmonitor": "TV"}
_NETWORKS = {"rn50": "resnet50", "rn101": "resnet101"}


def read_published(paper: str, folder: Path) -> pd.DataFrame:
    """Return all published rows of a paper, as text.

    Raises:
        InputError: there is no file of them.
    """
    path = folder / f"{paper}.csv"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in folder.glob("*.csv"))) or "none"
        raise InputError(f"{path}: no such file with published numbers; there are: {known}")
    return pd.read_csv(path, dtype=str, keep_default_na=False)


def published_table(expected: Mapping[str, Any] | None, folder: Path) -> pd.DataFrame | None:
    """Return the published rows of the table that a table's settings point to.

    Raises:
        InputError: the paper has no such table, or a quoted row is not in it.
    """
    if expected is None:
        return None
    rows = read_published(expected["paper"], folder)
    chosen = rows[rows["table"] == expected["table"]]
    path = folder / f"{expected['paper']}.csv"
    if chosen.empty:
        known = ", ".join(rows["table"].unique())
        raise InputError(f"{path}: has no table {expected['table']!r}; it has {known}")
    for pattern in expected.get("quoted", []):
        if not fnmatch.filter(chosen["method"], pattern):
            raise InputError(f"{path}: table {expected['table']!r} has no row {pattern!r} to quote")
    return chosen


def paper_method(template: str, values: Mapping[str, float], method: str = "") -> str:
    """Fill {method}, and of a sweep {w1} and {w2} = 1 - w1, into the name of a published row.

    {stem} is the method's name up to the first ``--``, where variants of one row are told apart.
    """
    known: dict[str, Any] = {"method": method, "stem": method.split("--")[0], **values}
    if "w1" in values:
        known["w2"] = round(1 - values["w1"], 10)
    try:
        return fill_braces(template, known)
    except KeyError:
        # A point without the swept parameter has no published row.
        return template


def rows_beside(
    published: pd.DataFrame,
    dataset: Mapping[str, Any],
    row: Mapping[str, Any],
    values: Mapping[str, float],
    metric: str,
) -> pd.DataFrame:
    """Return the published rows of a table's row at a sweep point: one, or none.

    Args:
        dataset: its `benchmark` and `imbalance`.
        row: `method`, `paper_method`, and which `networks` it rests on (network names, ``+`` and
            the attention where there is one; none where they are not known) unless it names a
            `paper_backbone`.
        metric: as `ltpipe.evaluation.tables` names them, classes and ranks after a colon.
    """
    if not row.get("paper_method"):
        return published[:0]
    name = paper_method(row["paper_method"], values, row.get("method", ""))
    chosen = of_dataset(published, dataset)
    chosen = chosen[(chosen["method"] == name) & (chosen["metric"] == published_metric(metric))]
    if row.get("paper_backbone"):
        return chosen[chosen["backbone"] == row["paper_backbone"]]
    networks = row.get("networks", [])
    if networks:
        return chosen[[_is_of(name, networks) for name in chosen["backbone"]]]
    return chosen if chosen["backbone"].nunique() < 2 else chosen[:0]


def of_dataset(published: pd.DataFrame, dataset: Mapping[str, Any]) -> pd.DataFrame:
    """Return the published rows of a data set, at its imbalance where it has one."""
    chosen = published[published["dataset"] == dataset["benchmark"]]
    if dataset["imbalance"] is None:
        return chosen
    return chosen[pd.to_numeric(chosen["imbalance"], errors="coerce") == dataset["imbalance"]]


def quoted_rows(published: pd.DataFrame, patterns: Sequence[str]) -> pd.DataFrame:
    """Return the published rows that a table quotes."""
    return published[
        [any(fnmatch.fnmatchcase(name, p) for p in patterns) for name in published["method"]]
    ]


def published_metric(metric: str) -> str:
    """Return what data/expected calls a metric, or an empty text."""
    kind, _, part = metric.partition(":")
    if not part:
        return _METRICS.get(kind, "")
    if kind.startswith("rank_"):
        name = f"{_OF_GROUPS[kind]}:Class{part}"
        return _GROUP_NAMES.get(name, name)
    return f"{_OF_GROUPS[kind]}:{_CLASS_NAMES.get(part, part.capitalize())}"


def _is_of(backbone: str, networks: Sequence[str]) -> bool:
    """Return whether numbers of a published backbone are of one of these networks.

    HRJBA writes BM- before plain networks and AM- before those with attention.
    """
    attention = {"BM-": False, "AM-": True}.get(backbone[:3])
    wanted = _key(backbone if attention is None else backbone[3:])
    return any(
        _key(network.split("+")[0]) == wanted and attention in (None, "+" in network)
        for network in networks
    )


def _key(network: str) -> str:
    plain = network.lower().removeprefix("bbn-").removesuffix("-quickgelu")
    plain = re.sub("[^a-z0-9]", "", plain)
    return _NETWORKS.get(plain, plain)
