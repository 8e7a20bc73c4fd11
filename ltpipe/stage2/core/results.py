"""What every method leaves behind: predictions, metrics, and weights."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import h5py
import numpy as np
import pandas as pd
import torch
from safetensors.torch import save_file
from torch import Tensor

from ltpipe.artifacts.divergence import write_divergence
from ltpipe.artifacts.job import Job
from ltpipe.artifacts.reading import checked_file
from ltpipe.config.base import Settings, canonical_json
from ltpipe.data.subset import read_texts, write_texts
from ltpipe.evaluation.metrics import evaluate
from ltpipe.features.store import FeatureStore, read_paths
from ltpipe.utils.errors import InputError
from ltpipe.utils.io import atomic_path, write_text_atomic
from ltpipe.utils.progress import say

SCALARS = (
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
)
# Beyond this, predictions.h5 holds each sample's prediction and confidence, not all scores.
_MAX_SCORE_BYTES = 256 << 20

_Value = TypeVar("_Value")
_Settings = TypeVar("_Settings", bound=Settings)


def under(table: Mapping[str, _Value], part: str) -> dict[str, _Value]:
    """Return the entries whose names begin with `part` and a dot, by what follows it."""
    start = f"{part}."
    return {
        name.removeprefix(start): value for name, value in table.items() if name.startswith(start)
    }


def open_stores(job: Job, split: str, skip: Sequence[str] = ()) -> dict[str, FeatureStore]:
    """Return the stores of one split by role.

    Raises:
        InputError: a store is damaged or empty, or the stores hold different samples.
    """
    stores = {
        role: FeatureStore.open(job.file(f"features.{role}", f"{split}.h5"), skip)
        for role in under(job.inputs, "features")
    }
    first = next(iter(stores.values()))
    for store in stores.values():
        if not len(store.labels):
            raise InputError(f"{store.path}: has no samples; the data set has no {split} split")
        if not (
            np.array_equal(store.labels, first.labels)
            and np.array_equal(store.index, first.index)
            and store.class_names == first.class_names
        ):
            raise InputError(f"{store.path} and {first.path} hold different samples")
    return stores


def write_results(
    job: Job,
    probabilities: Iterable[np.ndarray],
    *,
    points: Sequence[Mapping[str, float]],
    protocol: str,
    test: FeatureStore,
    weights: Mapping[str, Tensor],
    more_rows: Callable[[int, np.ndarray], pd.DataFrame] | None = None,
    other_rows: Sequence[pd.DataFrame] = (),
) -> None:
    """Write models.safetensors, predictions.h5 and metrics.csv to `job.output`.

    Points whose probabilities are not finite, and all points on a backbone that did not converge,
    have no metrics but a record of why.

    Args:
        probabilities: of the classes, (N, C) of the test samples for each sweep point.
        points: the swept parameters of each sweep point.
        protocol: the evaluation protocol's tag.
        test: the test store, for labels and class counts.
        weights: tensors with the points along the first axis.
        more_rows: makes further rows of a sweep point's place and probabilities.
        other_rows: further rows of metrics, under their own protocol tags.
    """
    samples, classes = len(test.labels), len(test.class_names)
    keep_scores = len(points) * samples * classes * 4 <= _MAX_SCORE_BYTES
    predicted = np.empty((len(points), samples), np.int64)
    confidence = np.empty((len(points), samples), np.float32)
    kept = np.empty((len(points), samples, classes) if keep_scores else (0, 0, 0), np.float32)
    rows: list[pd.DataFrame] = []
    further = list(other_rows)
    groups = ""
    lost = str(test.attributes.get("diverged", ""))
    diverged = dict.fromkeys(range(len(points)), f"backbone: {lost}") if lost else {}
    for place, (point, values) in enumerate(zip(points, probabilities, strict=True)):
        if not np.isfinite(values).all():
            diverged.setdefault(place, "its probabilities are not finite")
        if place in diverged:
            values = np.full((samples, classes), 1 / classes, np.float32)
        metrics = metrics_of(values, test, job.spec["groups"])
        groups = metrics["groups"]
        rows.append(metric_rows(metrics, place, point, protocol))
        if more_rows is not None:
            further.append(more_rows(place, values))
        predicted[place] = values.argmax(1)
        confidence[place] = values.max(1)
        if keep_scores:
            kept[place] = values
    with atomic_path(job.output / "models.safetensors") as temporary:
        save_file(
            {name: tensor.cpu().contiguous() for name, tensor in weights.items()},
            temporary,
            # One entry: safetensors writes several in an order that changes from run to run.
            {"ltpipe": canonical_json({"points": list(points), "method": job.spec["method"]})},
        )
    with atomic_path(job.output / "predictions.h5") as temporary:
        with h5py.File(temporary, "w", libver=("v108", "latest")) as file:
            file["predicted"] = predicted
            file["confidence"] = confidence
            file["labels"] = test.labels
            file["index"] = test.index
            if keep_scores:
                file["scores"] = kept
            if (paths := read_paths(test.path)) is not None:
                write_texts(file, "paths", paths)
            file.attrs["format"] = "ltpipe-predictions/1"
            file.attrs["points"] = canonical_json(list(points))
            file.attrs["class_names"] = json.dumps(test.class_names, ensure_ascii=False)
            file.attrs["class_counts"] = json.dumps(test.class_counts)
            file.attrs["groups"] = groups
            file.attrs["complete"] = True
    table = pd.concat([*rows, *further], ignore_index=True)
    table.loc[table["point"].isin(diverged), "value"] = np.nan
    write_divergence(job.output, diverged)
    write_text_atomic(job.output / "metrics.csv", table.to_csv(index=False))
    for place, point in enumerate(points):
        mine = rows[place].set_index("metric")["value"]
        shown = ", ".join(f"{key} {value:g}" for key, value in point.items())
        if place in diverged:
            say(f"{shown + ': ' if shown else ''}did not converge: {diverged[place]}")
            continue
        say(
            f"{shown + ': ' if shown else ''}test accuracy {mine['accuracy']:.1%}, "
            f"many {mine['many']:.1%}, medium {mine['medium']:.1%}, few {mine['few']:.1%}"
        )


@dataclass(frozen=True)
class Predictions:
    """A method's predictions on the test set; P points of a sweep, N samples, C classes.

    `predicted` (P, N) int64, `confidence` (P, N), `labels` and `index` (N,), `scores` (P, N, C) or
    None, `paths` of image files or None.
    """

    predicted: np.ndarray
    confidence: np.ndarray
    labels: np.ndarray
    index: np.ndarray
    scores: np.ndarray | None
    paths: list[str] | None
    points: list[dict[str, float]]
    class_names: list[str]
    class_counts: list[int]
    groups: str


def read_predictions(folder: Path) -> Predictions:
    """Return what a method predicted.

    Raises:
        InputError: predictions.h5 is missing or damaged.
    """
    path = checked_file(folder, "predictions.h5")
    try:
        with h5py.File(path, "r", locking=False) as file:
            return Predictions(
                predicted=file["predicted"][()],
                confidence=file["confidence"][()],
                labels=file["labels"][()],
                index=file["index"][()],
                paths=read_texts(file, "paths") if "paths" in file else None,
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


def metrics_of(probabilities: np.ndarray, test: FeatureStore, groups: str) -> dict[str, Any]:
    """Return the metrics of class probabilities (N, C) on the test store's labels."""
    return evaluate(probabilities, test.labels, test.class_counts, groups=groups)


def metric_rows(
    metrics: Mapping[str, Any], place: int, point: Mapping[str, float], protocol: str
) -> pd.DataFrame:
    """Return one point's rows of metrics.csv: the scalars, then each class's accuracy."""
    names = [*SCALARS, *["class_accuracy"] * len(metrics["per_class"])]
    classes: list[int | None] = [None] * len(SCALARS)
    return pd.DataFrame(
        {
            "point": place,
            "parameters": canonical_json(dict(point)),
            "protocol": protocol,
            "metric": names,
            "class": pd.array([*classes, *range(len(metrics["per_class"]))], dtype="Int64"),
            "value": [*(metrics[name] for name in SCALARS), *metrics["per_class"]],
        }
    )


def manifest_facts(protocol: str, points: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Return what a method's manifest says beside its spec."""
    return {"protocol": protocol, "points": [dict(point) for point in points]}


def method_settings(job: Job, model: type[_Settings], roles: Sequence[str]) -> _Settings:
    """Return the method's settings from the spec; roles stand for the backbones' names."""
    return model.model_validate({**job.spec["method"], "backbones": {role: role for role in roles}})


def classifier_of(store: FeatureStore) -> tuple[Tensor, Tensor | None]:
    """Return the stage-one classifier that the training store carries: weight, bias or None.

    Raises:
        InputError: the store carries none, or one over subclasses.
    """
    class_logits(store)
    if store.classifier_weight is None:
        raise InputError(
            f"{store.path}: carries no stage-one classifier; this method needs features dumped "
            "from a trained backbone"
        )
    weight = torch.from_numpy(store.classifier_weight)
    bias = None if store.classifier_bias is None else torch.from_numpy(store.classifier_bias)
    return weight, bias


def linear_classifier_of(store: FeatureStore) -> tuple[Tensor, Tensor]:
    """Return the stage-one classifier with zeros for a bias that it lacks; see `classifier_of`."""
    weight, bias = classifier_of(store)
    return weight, torch.zeros(len(weight)) if bias is None else bias


def class_logits(store: FeatureStore) -> np.ndarray | None:
    """Return the store's logits (N, C), or None where there are none.

    Raises:
        InputError: the backbone's classifier is over subclasses, or over a part of the classes.
    """
    if "classes" in store.attributes:
        raise InputError(
            f"{store.path}: the backbone's classifier knows a part of the classes; method hrjba "
            "joins two such parts"
        )
    if "subclasses" in store.attributes:
        raise InputError(
            f"{store.path}: the backbone's classifier is over subclasses; method label-mapping "
            "leads from them to classes"
        )
    return store.logits
