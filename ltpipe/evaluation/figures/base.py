"""What all figures share: their material, their files, their style."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, StrMethodFormatter

from ltpipe.artifacts.reading import checked_file
from ltpipe.utils.errors import InputError

# Of a class's name, in figures.
_NAME_LENGTH = 22


@dataclass(frozen=True)
class Drawn:
    """A finished figure: the stem of its files in the folder, its title, what it shows."""

    name: str
    title: str
    caption: str


@dataclass(frozen=True)
class Material:
    """What figures are drawn from: the report's spec, all records, the folders to use."""

    spec: Mapping[str, Any]
    records: pd.DataFrame
    base: Path
    output: Path
    expected_dir: Path

    def dataset(self, name: str) -> Mapping[str, Any]:
        return self.spec["datasets"][name]

    def label(self, method: str) -> str:
        return next(r["label"] for r in self.spec["results"] if r["method"] == method)

    def folders(self, dataset: str, method: str) -> list[Path]:
        """Return a method's result folders on a data set, by seed."""
        found = [
            self.base / result["folder"]
            for result in sorted(self.spec["results"], key=lambda result: result["seed"])
            if result["dataset"] == dataset and result["method"] == method
        ]
        if not found:
            raise InputError(f"figures: {method} was not run on {dataset}; see runs")
        return found

    def feature_file(self, dataset: str, backbone: str) -> Path:
        """Return the test features of the first seed."""
        for row in sorted(self.spec["features"], key=lambda row: row["seed"]):
            if row["dataset"] == dataset and row["backbone"] == backbone:
                return checked_file(self.base / row["folder"], "test.h5")
        raise InputError(f"figures: no run caches the features of {backbone} on {dataset}")

    def backbone_folder(self, dataset: str, backbone: str) -> Path:
        """Return the trained backbone of the first seed."""
        for row in sorted(self.spec["stage1"], key=lambda row: row["seed"] or 0):
            if row["dataset"] == dataset and row["backbone"] == backbone:
                return self.base / row["folder"]
        raise InputError(f"figures: no run trains {backbone} on {dataset}")


@contextmanager
def file_of(
    material: Material, name: str, data: pd.DataFrame, width: float = 7.0, height: float = 3.8
) -> Iterator[Figure]:
    """Give an empty figure, then write it and the data behind it."""
    figure = Figure(figsize=(width, height), layout="constrained")
    yield figure
    material.output.mkdir(parents=True, exist_ok=True)
    figure.savefig(material.output / f"{name}.png", dpi=160, metadata={"Software": None})
    figure.savefig(material.output / f"{name}.svg", metadata={"Date": None, "Creator": None})
    data.to_csv(material.output / f"{name}.csv", index=False)


def plain_numbers(axis: Any) -> None:
    """Write the numbers of a logarithmic axis as 0.5 or 20, without powers of ten."""
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_locator(LogLocator(subs=(2, 5)))


def short_name(name: str) -> str:
    """Return a class name that fits beside others."""
    return name if len(name) <= _NAME_LENGTH else f"{name[: _NAME_LENGTH - 1]}…"


def name_classes(axes: Any, names: list[str]) -> None:
    names = [short_name(name) for name in names]
    if len(names) <= 20:
        long = max(map(len, names)) > 4
        axes.set_xticks(
            range(len(names)), names, rotation=45 if long else 0, ha="right" if long else "center"
        )
        axes.set_xlabel("class, by training images" if not long else "")
    else:
        axes.set_xlabel("class, by rank of training images")
