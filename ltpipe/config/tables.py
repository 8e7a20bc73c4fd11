"""Settings of an experiment's tables."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ltpipe.config.base import Float, Settings


class Expected(Settings):
    """A published table: data/expected/{paper}.csv, rows of `table`."""

    paper: str
    table: str


class TableRow(Settings):
    """One row: a method, and of a swept method the point `at` which it stands.

    A method with `*` stands for all that match, a row each. `paper_method` may hold {method} and
    swept parameters.
    """

    method: str
    at: dict[str, Float] | None = None
    label: str | None = None
    paper_method: str | None = None


class Table(Settings):
    title: str = ""
    rows: list[TableRow] = Field(min_length=1)
    datasets: list[str] = ["*"]
    metrics: list[
        Literal[
            "accuracy",
            "many",
            "medium",
            "few",
            "head_tail_gap",
            "balanced_accuracy",
            "macro_f1",
            "mcc",
            "nmi",
            "auc",
            "ece",
            "nll",
            "head_group",
            "tail_group",
            "coverage",
            "macro_coverage",
            "covered_below_half",
            "set_size",
        ]
    ] = ["accuracy", "many", "medium", "few"]
    expected: Expected | None = None
