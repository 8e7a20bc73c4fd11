"""Settings of an experiment's tables."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from ltpipe.config.base import Float, Name, Settings

# What a table of data sets says of each.
DATASET_FACTS = ("train_images", "test_images", "classes", "image_size")
BY_RANK = ("rank_accuracy", "rank_error")
BY_CLASS = ("class_accuracy", "class_error", "class_test_images")


class Expected(Settings):
    """A published table: data/expected/{paper}.csv, rows of `table`.

    `quoted` names published rows that no method here makes, `*` allowed: they stand below the
    others as quoted numbers.
    """

    paper: Name
    table: str
    quoted: list[str] = []


class TableRow(Settings):
    """One row: a method, and of a swept method the point `at` which it stands.

    A method with `*` stands for all that match, a row each. `paper_method` may hold {method} and
    swept parameters. Of a row that is published for several networks the number is that of the
    method's own; `paper_backbone` names another.
    """

    method: str
    at: dict[str, Float] | None = None
    label: str | None = None
    paper_method: str | None = None
    paper_backbone: str | None = None


class Table(Settings):
    """Methods by data sets and metrics, or with `kind: datasets` facts of the data sets.

    `rank_accuracy` and `rank_error` are over all test samples of groups of classes: of the first
    `ranks[0]` classes by their number of training (or `ranked_by: test`) images, then of the next
    `ranks[1]`, and so on. With `class_` metrics every class is a row and every method a column.
    """

    title: str = ""
    kind: Literal["methods", "datasets"] = "methods"
    rows: list[TableRow] = []
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
            "rank_accuracy",
            "rank_error",
            "class_accuracy",
            "class_error",
            "class_test_images",
            "train_images",
            "test_images",
            "classes",
            "image_size",
        ]
    ] = ["accuracy", "many", "medium", "few"]
    ranks: list[int] = []
    ranked_by: Literal["train", "test"] = "train"
    expected: Expected | None = None

    @model_validator(mode="after")
    def _fits(self) -> Table:
        facts = set(self.metrics) & set(DATASET_FACTS)
        if self.kind == "datasets":
            if self.rows or facts != set(self.metrics):
                known = ", ".join(DATASET_FACTS)
                raise ValueError(f"kind: datasets has no rows, and metrics of these: {known}")
        elif facts:
            raise ValueError(f"metrics: {sorted(facts)[0]} is of kind: datasets")
        elif not self.rows:
            raise ValueError("rows: give at least one")
        if (
            bool(self.ranks) != bool(set(self.metrics) & set(BY_RANK))
            or min(self.ranks, default=1) < 1
        ):
            raise ValueError("ranks: sizes from 1 up, for the metrics rank_accuracy and rank_error")
        by_class = [name in BY_CLASS for name in self.metrics]
        if any(by_class) and not all(by_class):
            raise ValueError("metrics: those of classes make a table of their own")
        return self
