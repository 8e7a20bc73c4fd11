"""Images named by one table: a path, a label and at will a split in each row."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from ltpipe.config.datasets import OwnImages
from ltpipe.config.registry import reader
from ltpipe.data.images import stored_images
from ltpipe.data.sources import Part, Source, sorted_names
from ltpipe.utils.errors import InputError, nearest
from ltpipe.utils.outside import checked, read_bytes
from ltpipe.utils.paths import locate

SUFFIXES = (".csv", ".tsv", ".parquet")
# What people call the splits that are called train, val and test here.
SPLITS = {
    "training": "train",
    "validation": "val",
    "valid": "val",
    "dev": "val",
    "testing": "test",
    "train": "train",
    "val": "val",
    "test": "test",
}


@reader("table")
class TableDataset(OwnImages):
    """Images named by a table: CSV, TSV or Parquet with the columns path, label and at will split.

    Paths are relative to `path`. Labels are texts or numbers, and name the classes, which are
    sorted. Splits are train, val and test; without test rows a share of each class is set apart.
    """

    source: Literal["table"]
    path: str
    table: str
    path_column: str = "path"
    label_column: str = "label"
    split_column: str = "split"

    def locations(self) -> frozenset[str]:
        return frozenset({"path", "table"})

    def files(self, root: Path | None) -> Iterator[tuple[str, str]]:
        folder, table = locate(self.path, root), locate(self.table, root)
        yield "table", str(table)
        for file in dict.fromkeys(self._rows(table)[0]):
            yield f"images/{file}", f"{folder}/{file}"

    def read(self, root: Path | None) -> Source:
        folder, table = locate(self.path, root), locate(self.table, root)
        paths, texts, splits = self._rows(table)
        if not (folder / paths[0]).is_file():
            raise InputError(
                f"{folder / paths[0]}, the first image of {table}, does not exist: path must name "
                "the folder that the listed paths are relative to"
            )
        chosen = {name: np.flatnonzero(splits == name) for name in ("train", "val", "test")}
        names = sorted_names(texts[place] for place in chosen["train"])
        places = {name: place for place, name in enumerate(names)}
        parts = {}
        for split, rows in chosen.items():
            if unknown := sorted({texts[row] for row in rows} - places.keys()):
                raise InputError(f"{table}: class {unknown[0]!r} has {split} rows and no train row")
            files = [paths[row] for row in rows]
            labels = np.array([places[texts[row]] for row in rows], np.int64)
            images = stored_images([folder / file for file in files], self.input)
            parts[split] = Part(images, labels, files) if len(rows) else None
        if parts["train"] is None:
            raise InputError(f"{table}: no row is of the split train")
        return Source(names, parts["train"], parts["val"], parts["test"])

    def _rows(self, table: Path) -> tuple[list[str], list[str], np.ndarray]:
        """Return the paths, labels and splits of a table.

        Raises:
            InputError: it can't be read, lacks a column or a value, or has an unknown split.
        """
        columns = read_columns(table)
        wanted = [self.path_column, self.label_column]
        for name in wanted:
            if name not in columns:
                raise InputError(
                    f"{table} has no column {name!r}{nearest(name, columns)}, only "
                    f"{', '.join(columns)}; path_column, label_column and split_column name them"
                )
        paths, labels = (columns[name] for name in wanted)
        if not paths:
            raise InputError(f"{table} is empty: rows of {', '.join(wanted)} are needed")
        for name, values in zip(wanted, (paths, labels), strict=True):
            if "" in values:
                raise InputError(f"{table}: row {values.index('') + 1} has no {name}")
        splits = columns.get(self.split_column, ["train"] * len(paths))
        for row, split in enumerate(splits, start=1):
            if split.lower() not in SPLITS:
                raise InputError(f"{table}: split {split!r} of row {row}: train, val or test")
        return paths, labels, np.array([SPLITS[split.lower()] for split in splits])


def read_columns(table: Path) -> dict[str, list[str]]:
    """Return the columns of a CSV, TSV or Parquet file as texts, without spaces around them.

    Raises:
        InputError: it can't be read.
    """
    try:
        if table.suffix.lower() == ".parquet":
            return _parquet_columns(checked(table))
        lines = io.StringIO(read_bytes(table).decode("utf-8-sig"), newline="")
        delimiter = "\t" if table.suffix.lower() == ".tsv" else ","
        heading, *rows = [row for row in csv.reader(lines, delimiter=delimiter) if row]
    except (OSError, UnicodeDecodeError, csv.Error, ValueError) as error:
        reason = "it is empty" if "unpack" in str(error) else error
        raise InputError(f"{table} can't be read as a table: {reason}") from None
    for number, row in enumerate(rows, start=1):
        if len(row) != len(heading):
            raise InputError(
                f"{table}: row {number} has {len(row)} fields, the heading {len(heading)}"
            )
    return _by_name(heading, [[row[place] for row in rows] for place in range(len(heading))])


def _parquet_columns(table: Path) -> dict[str, list[str]]:
    # Not pyarrow, whose threads would be in every process that imports pandas.
    try:
        from fastparquet import ParquetFile
    except ImportError:
        raise InputError(
            f"{table}: Parquet needs fastparquet (pip install fastparquet); CSV works without it"
        ) from None
    try:
        found = ParquetFile(str(table)).to_pandas()
    # What the decoder of a damaged file raises is of its own kind.
    except Exception as error:
        raise InputError(f"{table} can't be read as a table: {error}") from None
    texts = found.astype(object).where(found.notna(), "").map(str)
    return _by_name([str(name) for name in texts], [texts[name].tolist() for name in texts])


def _by_name(heading: Sequence[str], columns: Sequence[list[str]]) -> dict[str, list[str]]:
    pairs = zip(heading, columns, strict=True)
    return {name.strip(): [value.strip() for value in values] for name, values in pairs}
