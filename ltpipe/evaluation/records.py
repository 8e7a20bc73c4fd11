"""Read the artifacts of finished jobs back, for tables and figures."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd

from ltpipe.artifacts.divergence import read_divergence
from ltpipe.artifacts.reading import checked_file
from ltpipe.data.subset import read_subset
from ltpipe.utils.errors import InputError

_METRIC_COLUMNS = ["point", "parameters", "protocol", "metric", "class", "value"]
_HISTORY_COLUMNS = ["epoch", "learning_rate", "loss", "accuracy", "seconds"]


def read_records(spec: Mapping[str, Any], base: Path = Path()) -> pd.DataFrame:
    """Return the metrics of all results of a report's spec as one long table.

    Columns: dataset, method, label, kind, seed, draw (its subset seed where draws are joined under
    one name, else 0), those of metrics.csv, and `diverged`: why the run
    did not converge, or an empty text. Folders of the spec are relative to `base`.

    Raises:
        InputError: a metrics.csv is missing or damaged.
    """
    tables = []
    for result in spec["results"]:
        table = _read_csv(checked_file(base / result["folder"], "metrics.csv"), _METRIC_COLUMNS)
        for place, key in enumerate(("dataset", "method", "label", "kind", "seed")):
            table.insert(place, key, result[key])
        table.insert(5, "draw", result.get("draw", 0))
        reasons = read_divergence(base / result["folder"])
        table["diverged"] = table["point"].map(reasons).fillna("") if reasons else ""
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def read_history(folder: Path) -> pd.DataFrame:
    """Return a training's history.csv: epoch, learning_rate, loss, accuracy, seconds."""
    return _read_csv(checked_file(folder, "history.csv"), _HISTORY_COLUMNS)


def _read_csv(path: Path, columns: list[str]) -> pd.DataFrame:
    try:
        table = pd.read_csv(path)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; the job that makes it has not finished") from None
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError):
        raise InputError(f"{path}: not a readable table; delete it and run again") from None
    if list(table.columns) != columns:
        raise InputError(f"{path}: must have the columns {', '.join(columns)}; run again")
    return table


def read_class_counts(folder: Path) -> tuple[list[str], list[int]]:
    """Return class names and training counts of the subset in a data folder."""
    with _subset(folder) as file:
        return json.loads(file.attrs["class_names"]), file["class_counts"][()].tolist()


def read_test_counts(folder: Path) -> list[int]:
    """Return the number of test samples of each class of the subset in a data folder."""
    with _subset(folder) as file:
        classes = len(file["class_counts"])
        return np.bincount(file["test_labels"][()], minlength=classes).tolist()


@contextmanager
def _subset(folder: Path) -> Iterator[h5py.File]:
    path = checked_file(folder, "subset.h5")
    try:
        with h5py.File(path, "r", locking=False) as file:
            yield file
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; the job that makes it has not finished") from None
    except (OSError, KeyError, RuntimeError, ValueError):
        raise InputError(f"{path}: not a readable subset file; delete it and run again") from None


def read_left_out(folder: Path) -> list[str]:
    """Return a line for each sample of a data folder's set that could not be used."""
    return read_subset(checked_file(folder, "subset.h5")).left_out
