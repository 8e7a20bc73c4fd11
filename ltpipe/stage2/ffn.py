"""FFN: one cosine classifier on the mixture of a CE and a KPS backbone's features.

The released code applies one cosine classifier to both features and averages the cosines. Since
the classifier is linear in the unit feature, that equals fusing unit features first (the paper's
eq. 14): ``z = W^T (w1 f_KPS / |f_KPS| + (1 - w1) f_CE / |f_CE|)`` with unit columns of W, and the
mixture not brought to unit length again. The classifier is retrained with LDAM (eqs. 9, 10) under
class-balanced sampling; both backbones stay frozen in evaluation mode. The released code leaves
the CE branch's BatchNorm in training mode and picks the best epoch on the test set: `train_bn` and
`best_test` show what that changes.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ltpipe.config.methods import FFN
from ltpipe.errors import InputError
from ltpipe.features.store import FeatureStore
from ltpipe.job import Job
from ltpipe.losses.margin import LDAMLoss
from ltpipe.seeding import generator
from ltpipe.stage2.batches import FusedBatches, UnitRows, drawn_views
from ltpipe.stage2.classifiers import CosineModel, cosine_scores, random_directions
from ltpipe.stage2.fit import EpochBatches, Parameters, Recipe, fit
from ltpipe.stage2.logit_gradients import logit_gradient
from ltpipe.stage2.results import (
    classifier_of,
    evaluate_scores,
    manifest_facts,
    method_settings,
    metric_rows,
    open_stores,
    write_results,
)


def run(job: Job) -> dict[str, Any]:
    """Fit the classifiers of all coefficients at once and evaluate their last epoch.

    `job.inputs` has the stores `features.ce` and `features.kps`, whose views v must be the same
    crops; with `online: true` also the backbones and the images.
    """
    settings = method_settings(job, FFN, ["ce", "kps"])
    train = open_stores(job, "train", skip=() if settings.views == "cached" else ("views",))
    test = open_stores(job, "test")
    points = settings.points()
    coefficients = torch.tensor([point["w1"] for point in points], device=job.device)
    classes = len(train["kps"].class_names)
    loss = LDAMLoss(train["kps"].class_counts, settings.max_margin, settings.scale)
    start = _initial_classifier(settings, train["kps"], classes, job.spec["seed"])
    batches = _batches(job, settings, train, coefficients)
    mixtures = _TestMixtures(test, job.device)
    best = _BestOnTest(mixtures, points, settings, job.spec["groups"])
    weight = fit(
        {"weight": start.to(job.device).repeat(len(points), 1, 1)},
        CosineModel(logit_gradient(loss, device=job.device)),
        batches,
        Recipe(
            epochs=settings.epochs,
            batch_size=settings.batch_size,
            learning_rate=settings.learning_rate,
            schedule=settings.schedule,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
        ),
        on_epoch=best if settings.best_test else None,
        description=f"FFN, {len(points)} points",
    )["weight"]
    protocol = settings.protocol()
    write_results(
        job,
        (
            mixtures.probabilities(w, point["w1"], settings.scale)
            for w, point in zip(weight, points, strict=True)
        ),
        points=points,
        protocol=protocol,
        test=test["kps"],
        weights={"weight": weight, "w1": coefficients},
        more_rows=best.rows(protocol.replace("last", "best_test")),
    )
    return manifest_facts(protocol, points)


def _initial_classifier(settings: FFN, kps: FeatureStore, classes: int, seed: int) -> Tensor:
    """Return the first weight (C, D): the KPS branch's, or unit rows drawn uniformly."""
    if settings.initial == "kps":
        weight, _ = classifier_of(kps)
        if weight.shape[0] != classes:
            raise InputError(
                f"{kps.path}: the KPS branch's classifier has {weight.shape[0]} rows for "
                f"{classes} classes; use initial: random"
            )
        return weight
    return random_directions(classes, kps.features.shape[1], generator(seed, "classifier"))


def _batches(
    job: Job, settings: FFN, train: dict[str, FeatureStore], coefficients: Tensor
) -> EpochBatches:
    if settings.online:
        # Imported only here: whoever uses the cache does not depend on how images are run.
        online = importlib.import_module("ltpipe.stage2.ffn_online")
        return online.OnlineBatches(job, settings, train["kps"], coefficients)
    tables = {
        role: drawn_views(store, settings.views).to(job.device) for role, store in train.items()
    }
    _check_same_views(train, settings)
    return FusedBatches(
        [tables["kps"]],
        [tables["ce"]],
        torch.from_numpy(train["kps"].labels),
        coefficients,
        [job.spec["seed"]],
        classes=len(train["kps"].class_names),
        sampler=settings.sampler,
        batch_size=settings.batch_size,
    )


def _check_same_views(train: dict[str, FeatureStore], settings: FFN) -> None:
    ce, kps = train["ce"], train["kps"]
    if ce.features.shape[1] != kps.features.shape[1]:
        raise InputError(
            f"{ce.path} has {ce.features.shape[1]} dimensions and {kps.path} "
            f"{kps.features.shape[1]}: FFN mixes features of equal size"
        )
    if settings.views == "plain":
        return
    same = all(ce.attributes.get(key) == kps.attributes.get(key) for key in ("view_seed", "seed"))
    assert ce.views is not None and kps.views is not None
    if not same or ce.views.shape != kps.views.shape:
        raise InputError(
            f"{ce.path} and {kps.path} hold different views: give both backbones the same "
            "features.views and features.view_seed"
        )


class _TestMixtures:
    """The unit features of the test samples, mixed as asked."""

    def __init__(self, test: dict[str, FeatureStore], device: torch.device) -> None:
        self.store = test["kps"]
        rows = torch.arange(len(self.store.labels), device=device)
        self.kps = UnitRows(torch.from_numpy(test["kps"].features).to(device)).gather(rows)
        self.ce = UnitRows(torch.from_numpy(test["ce"].features).to(device)).gather(rows)

    def probabilities(self, weight: Tensor, w1: float, scale: float) -> np.ndarray:
        """Return softmax of the scaled cosines, (N, C)."""
        cosines = cosine_scores(weight, torch.lerp(self.ce, self.kps, w1))
        return torch.softmax(cosines * scale, dim=1).cpu().numpy()


class _BestOnTest:
    """The metrics of each point's best epoch on the test set, as the released code reports them."""

    def __init__(
        self,
        mixtures: _TestMixtures,
        points: Sequence[dict[str, float]],
        settings: FFN,
        groups: str,
    ) -> None:
        self.mixtures = mixtures
        self.points = points
        self.scale = settings.scale
        self.groups = groups
        self.best: dict[int, dict[str, Any]] = {}

    def __call__(self, epoch: int, parameters: Parameters) -> None:
        for place, metrics in enumerate(self._evaluate(parameters["weight"])):
            if place not in self.best or metrics["accuracy"] > self.best[place]["accuracy"]:
                self.best[place] = metrics

    def _evaluate(self, weight: Tensor) -> Iterator[dict[str, Any]]:
        for w, point in zip(weight, self.points, strict=True):
            scores = self.mixtures.probabilities(w, point["w1"], self.scale)
            yield evaluate_scores(scores, self.mixtures.store, self.groups)

    def rows(self, protocol: str) -> list[pd.DataFrame]:
        """Return the rows for metrics.csv; none where no epoch was watched."""
        return [
            metric_rows(metrics, place, self.points[place], protocol)
            for place, metrics in self.best.items()
        ]
