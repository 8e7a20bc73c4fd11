"""The conformance check that every stage-two method passes; run it on a method of your own."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file

from ltpipe.artifacts.job import Job
from ltpipe.config.methods import settings_of
from ltpipe.config.registry import module_of
from ltpipe.data.longtail import class_counts
from ltpipe.features.store import write_features
from ltpipe.plan.stages import STAGES
from ltpipe.stage2.core.results import SCALARS

CLASSES, DIM, TEST_PER_CLASS = 5, 8, 20
# Three views of the training augmentation, two of each strength of a RandAugment ladder.
STRENGTHS = (0.0, 0.0, 0.0, 0.5, 0.5, 1.0, 1.0)
FILES = ("models.safetensors", "predictions.h5", "metrics.csv")


class MethodError(AssertionError):
    """A method does not keep to what users of all methods rely on."""


def check_method(kind: str, folder: Path, roles: list[str] | None = None, **settings: Any) -> None:
    """Run the method registered as `kind` on made features and check what all methods promise.

    The features are those of five separable classes with 60 to 3 training samples, with views of
    rising strength, class texts, logits and a classifier. The promises: models.safetensors,
    predictions.h5 and metrics.csv of the right shapes, points along the first axis; the same seed
    gives the same bytes; the test labels change neither weights nor predictions (of the protocol
    `oracle`, which is told of them, weights alone); the best point beats chance; scores are
    probabilities; the weights load.

    Args:
        kind: the method's registered name.
        folder: an empty folder to work in.
        roles: the roles of the method's backbones (default: those of its settings).
        settings: settings of the method; defaults otherwise.

    Raises:
        MethodError: a promise is broken; it says which.
    """
    model: Any = settings_of(kind)
    if roles is None:
        roles = list(model.model_fields["backbones"].annotation.model_fields)
    method = model.model_validate(
        {"kind": kind, "backbones": {role: role for role in roles}, **settings}
    )
    points = method.points()
    first = _run(method, roles, folder / "first", shuffle_test_labels=False)
    again = _run(method, roles, folder / "again", shuffle_test_labels=False)
    blind = _run(method, roles, folder / "blind", shuffle_test_labels=True)
    for name in FILES:
        _require((first / name).is_file(), f"{kind} writes no {name}")
        same = (first / name).read_bytes() == (again / name).read_bytes()
        _require(same, f"{kind}: the same seed gives other bytes in {name}")
    _check_predictions(kind, first, None if method.protocol() == "oracle" else blind, points)
    _check_metrics(kind, first, points, method.protocol())
    for name, tensor in load_file(first / "models.safetensors").items():
        _require(
            tensor.shape[:1] == (len(points),),
            f"{kind}: {name} {tuple(tensor.shape)} has no axis of {len(points)} points first",
        )
        _require(bool(torch.isfinite(tensor).all()), f"{kind}: tensor {name} is not finite")
        other = load_file(blind / "models.safetensors")[name]
        _require(torch.equal(tensor, other), f"{kind}: {name} depends on the test labels")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise MethodError(message)


def _run(method: Any, roles: list[str], folder: Path, *, shuffle_test_labels: bool) -> Path:
    inputs = {}
    for number, role in enumerate(roles):
        inputs[f"features.{role}"] = folder / role
        make_store(folder / role, number, shuffle_test_labels=shuffle_test_labels)
    output = folder / "out"
    output.mkdir(parents=True)
    inputs |= _filters(method, inputs, folder)
    spec = {"kind": "stage2", "method": method.identity(), "groups": "ranks", "seed": 0}
    importlib.import_module(module_of("method", method.kind)).run(
        Job(spec=spec, inputs=inputs, output=output, device=torch.device("cpu"))
    )
    return output


def _filters(method: Any, inputs: dict[str, Path], folder: Path) -> dict[str, Path]:
    """Train the filters that a method's cascade is made of."""
    cascade = method.filters()
    if cascade is None:
        return {}
    flow_filter = importlib.import_module(str(STAGES["filter"].module))
    found: dict[str, Path] = {}
    for block in range(1, cascade[1] + 1):
        output = folder / f"filter{block}"
        output.mkdir()
        sources = {"features": inputs[f"features.{method.filter_role()}"]}
        if block > 1:
            sources["previous"] = found[f"filter.{block - 1}"]
        spec = {"kind": "filter", "filter": cascade[0].identity(), "block": block, "seed": 0}
        flow_filter.run(Job(spec=spec, inputs=sources, output=output, device=torch.device("cpu")))
        found[f"filter.{block}"] = output
    return found


def make_store(folder: Path, number: int, *, shuffle_test_labels: bool = False) -> None:
    """Write train.h5, val.h5 and test.h5 of one made backbone to `folder`."""
    counts = class_counts(CLASSES, 60, 20)
    centres = np.random.default_rng(1).normal(size=(CLASSES, DIM)) * 2
    rotation = np.linalg.qr(np.random.default_rng(10 + number).normal(size=(DIM, DIM)))[0]
    for split, sizes in (
        ("train", counts),
        ("val", [2] * CLASSES),
        ("test", [TEST_PER_CLASS] * CLASSES),
    ):
        stream = np.random.default_rng(len(split))
        labels = np.repeat(np.arange(CLASSES), sizes)
        clean = centres[labels] + 0.4 * stream.normal(size=(len(labels), DIM))
        features = (clean @ rotation).astype(np.float32)
        noise = 0.2 * stream.normal(size=(len(STRENGTHS), *features.shape))
        shown = labels.copy()
        if split == "test" and shuffle_test_labels:
            shown = np.random.default_rng(0).permutation(labels)
        write_features(
            folder / f"{split}.h5",
            features=features,
            labels=shown,
            class_names=[f"class {label}" for label in range(CLASSES)],
            class_counts=counts,
            attributes={"view_seed": 0, "seed": 0, "logit_scale": 10.0},
            views=(features + noise).astype(np.float16) if split == "train" else None,
            view_strength=np.array(STRENGTHS, np.float32) if split == "train" else None,
            text=(centres @ rotation).astype(np.float32),
            logits=(features @ (centres @ rotation).T).astype(np.float32),
            classifier_weight=(centres @ rotation).astype(np.float32),
            classifier_bias=np.zeros(CLASSES, np.float32),
        )


def _check_predictions(
    kind: str, first: Path, blind: Path | None, points: list[dict[str, float]]
) -> None:
    with h5py.File(first / "predictions.h5") as a:
        predicted, scores, labels = a["predicted"][()], a["scores"][()], a["labels"][()]
        samples = CLASSES * TEST_PER_CLASS
        _require(predicted.shape == (len(points), samples), f"{kind}: predicted has a wrong shape")
        _require(scores.shape == (*predicted.shape, CLASSES), f"{kind}: scores have a wrong shape")
        _require(json.loads(a.attrs["points"]) == points, f"{kind}: points are not those asked for")
        _require(
            bool(np.allclose(scores.sum(-1), 1, atol=1e-4) and (scores >= 0).all()),
            f"{kind}: scores are no probabilities",
        )
        if blind is not None:
            with h5py.File(blind / "predictions.h5") as b:
                same = np.array_equal(predicted, b["predicted"][()])
            _require(same, f"{kind}: predictions depend on the test labels")
        accuracy = (predicted == labels).mean(1).max()
        _require(accuracy > 2 / CLASSES, f"{kind}: accuracy {accuracy:.2f} does not beat chance")


def _check_metrics(kind: str, folder: Path, points: list[dict[str, float]], protocol: str) -> None:
    table = pd.read_csv(folder / "metrics.csv")
    own = table[table["protocol"] == protocol]
    for place in range(len(points)):
        names = own[own["point"] == place]["metric"].tolist()
        expected = [*SCALARS, *["class_accuracy"] * CLASSES]
        _require(
            names[: len(expected)] == expected,
            f"{kind}: metrics.csv has other rows for point {place}",
        )
