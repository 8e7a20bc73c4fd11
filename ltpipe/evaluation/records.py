"""Read the artifacts of finished jobs back, for tables and figures."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd

from ltpipe.artifacts.divergence import read_divergence
from ltpipe.utils.errors import InputError

_METRIC_COLUMNS = ["point", "parameters", "protocol", "metric", "class", "value"]
_HISTORY_COLUMNS = ["epoch", "learning_rate", "loss", "accuracy", "seconds"]


@dataclass(frozen=True)
class Predictions:
    """A method's predictions on the test set; P points of a sweep, N samples, C classes.

    `predicted` (P, N) int64, `confidence` (P, N), `labels` (N,), `scores` (P, N, C) or None.
    """

    predicted: np.ndarray
    confidence: np.ndarray
    labels: np.ndarray
    scores: np.ndarray | None
    points: list[dict[str, float]]
    class_names: list[str]
    class_counts: list[int]
    groups: str


def read_records(spec: Mapping[str, Any], base: Path = Path()) -> pd.DataFrame:
    """Return the metrics of all results of a report's spec as one long table.

    Columns: dataset, method, label, kind, seed, those of metrics.csv, and `diverged`: why the run
    did not converge, or an empty text. Folders of the spec are relative to `base`.

    Raises:
        InputError: a metrics.csv is missing or damaged.
    """
    tables = []
    for result in spec["results"]:
        table = _read_csv(base / result["folder"] / "metrics.csv", _METRIC_COLUMNS)
        for place, key in enumerate(("dataset", "method", "label", "kind", "seed")):
            table.insert(place, key, result[key])
        reasons = read_divergence(base / result["folder"])
        table["diverged"] = table["point"].map(reasons).fillna("") if reasons else ""
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def read_history(folder: Path) -> pd.DataFrame:
    """Return a training's history.csv: epoch, learning_rate, loss, accuracy, seconds."""
    return _read_csv(folder / "history.csv", _HISTORY_COLUMNS)


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


def read_predictions(folder: Path) -> Predictions:
    """Return what a method predicted.

    Raises:
        InputError: predictions.h5 is missing or damaged.
    """
    path = folder / "predictions.h5"
    try:
        with h5py.File(path, "r", locking=False) as file:
            return Predictions(
                predicted=file["predicted"][()],
                confidence=file["confidence"][()],
                labels=file["labels"][()],
                scores=file["scores"][()] if "scores" in file else None,
                points=json.loads(file.attrs["points"]),
                class_names=json.loads(file.attrs["class_names"]),
                class_counts=json.loads(file.attrs["class_counts"]),
                groups=str(file.attrs["groups"]),
            )
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; the job that makes it has not finished") from None
    except (OSError, KeyError, RuntimeError, ValueError):
        raise InputError(
            f"{path}: not a readable predictions file; delete it and run again"
        ) from None


def read_class_counts(folder: Path) -> tuple[list[str], list[int]]:
    """Return class names and training counts of the subset in a data folder."""
    path = folder / "subset.h5"
    try:
        with h5py.File(path, "r", locking=False) as file:
            return json.loads(file.attrs["class_names"]), file["class_counts"][()].tolist()
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; the job that makes it has not finished") from None
    except (OSError, KeyError, RuntimeError, ValueError):
        raise InputError(f"{path}: not a readable subset file; delete it and run again") from None
