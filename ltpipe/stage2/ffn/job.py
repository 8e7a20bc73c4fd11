"""FFN: one cosine classifier on the mixture of a CE and a KPS backbone's features.

The released code applies one cosine classifier to both features and averages the cosines. Since
the classifier is linear in the unit feature, that equals fusing unit features first (the paper's
eq. 14): ``z = W^T (w1 f_KPS / |f_KPS| + (1 - w1) f_CE / |f_CE|)`` with unit columns of W, and the
mixture not brought to unit length again. `normalise: false` is the equation as it is printed, on
raw features under a linear classifier. The classifier is retrained with LDAM (eqs. 9, 10) under
class-balanced sampling; both backbones stay frozen in evaluation mode. The released code leaves
the CE branch's BatchNorm in training mode and picks the best epoch on the test set: `train_bn` and
`best_test` show what that changes.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from ltpipe.artifacts.job import Job
from ltpipe.features.store import FeatureStore
from ltpipe.losses.margin import LDAMLoss
from ltpipe.stage2.core.batches import (
    Draws,
    FusedBatches,
    Rows,
    UnitRows,
    drawn_views,
    unit_rows,
)
from ltpipe.stage2.core.fit import EpochBatches, Parameters, fit, repeated
from ltpipe.stage2.core.heads import (
    classifier_model,
    cosines,
    linear_logits,
    model_at,
    random_classifier,
)
from ltpipe.stage2.core.inference import Embedded, Fitted, Samples, evaluate_points, predict
from ltpipe.stage2.core.logit_gradients import logit_gradient
from ltpipe.stage2.core.results import (
    classifier_of,
    method_settings,
    metric_rows,
    metrics_of,
    open_stores,
)
from ltpipe.stage2.core.retraining import recipe_of
from ltpipe.stage2.ffn.settings import FFN
from ltpipe.utils.errors import InputError
from ltpipe.utils.seeding import generator


def run(job: Job) -> dict[str, Any]:
    """Fit the classifiers of all coefficients at once and evaluate their last epoch.

    `job.inputs` has the stores `features.ce` and `features.kps`, whose views v must be the same
    crops; with `online: true` also the backbones and the images.
    """
    settings = method_settings(job, FFN, ["ce", "kps"])
    train = open_stores(job, "train", skip=() if settings.needs_views() else ("views",))
    test = open_stores(job, "test")
    points = settings.points()
    coefficients = torch.tensor([point["w1"] for point in points], device=job.device)
    classes = len(train["kps"].class_names)
    loss = LDAMLoss(train["kps"].class_counts, settings.max_margin, settings.scale)
    start = _initial_classifier(settings, train["kps"], classes, job.seed)
    batches = _batches(job, settings, train, coefficients)
    best = _BestOnTest(test, settings, job)
    weights = fit(
        repeated(start, len(points), job.device),
        classifier_model(logit_gradient(loss, device=job.device), cosine=settings.normalise),
        batches,
        recipe_of(settings),
        on_epoch=best if settings.best_test else None,
        description=f"FFN, {len(points)} models",
    )
    return evaluate_points(
        job,
        settings,
        test,
        logits,
        {**weights, "w1": coefficients},
        other_rows=best.rows(settings.protocol().replace("last", "best_test")),
    )


def logits(fitted: Fitted[FFN], samples: Samples) -> Tensor:
    """Return the scaled cosines (N, C) of the mixture of both backbones' unit features.

    With `normalise: false` they are a linear classifier's outputs for the mixture of raw features.
    """
    settings, weights = fitted.settings, fitted.weights
    ce, kps = (samples[role].features for role in ("ce", "kps"))
    if not settings.normalise:
        return linear_logits(weights, torch.lerp(ce, kps, fitted.point["w1"])) * settings.scale
    mixture = torch.lerp(unit_rows(ce), unit_rows(kps), fitted.point["w1"])
    return cosines(weights["weight"], mixture) * settings.scale


def _initial_classifier(settings: FFN, kps: FeatureStore, classes: int, seed: int) -> Parameters:
    """Return the first weight (C, D), and of a linear classifier the bias (C,).

    They are the KPS branch's, whose bias is zero, or drawn.
    """
    if settings.initial == "kps":
        weight, _ = classifier_of(kps)
        if weight.shape[0] != classes:
            raise InputError(
                f"{kps.path}: the KPS branch's classifier has {weight.shape[0]} rows for "
                f"{classes} classes; use initial: random"
            )
        return {"weight": weight} | ({} if settings.normalise else {"bias": torch.zeros(classes)})
    draws = generator(seed, "classifier")
    return random_classifier(classes, kps.features.shape[1], draws, cosine=settings.normalise)


def _batches(
    job: Job, settings: FFN, train: dict[str, FeatureStore], coefficients: Tensor
) -> EpochBatches:
    if settings.online:
        # Imported only here: whoever uses the cache does not depend on how images are run.
        online = importlib.import_module("ltpipe.stage2.ffn.online")
        return online.OnlineBatches(
            job,
            train["kps"],
            coefficients,
            sampler=settings.sampler,
            batch_size=settings.batch_size,
            train_bn=settings.train_bn,
            normalise=settings.normalise,
        )
    tables = {
        role: drawn_views(store, settings.views).to(job.device) for role, store in train.items()
    }
    _check_same_views(train, settings)
    draws = Draws(
        torch.from_numpy(train["kps"].labels),
        len(tables["kps"]),
        job.seed,
        classes=len(train["kps"].class_names),
        sampler=settings.sampler,
    )
    rows = UnitRows if settings.normalise else Rows
    size = settings.batch_size
    return FusedBatches(tables["kps"], tables["ce"], draws, coefficients, size, rows)


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


class _BestOnTest:
    """The metrics of each point's best epoch on the test set, as the released code reports them."""

    def __init__(self, test: dict[str, FeatureStore], settings: FFN, job: Job) -> None:
        self.store = test["kps"]
        self.samples = {role: Embedded.of(store, job.device) for role, store in test.items()}
        self.settings = settings
        self.points = settings.points()
        self.groups = job.spec["groups"]
        self.best: dict[int, dict[str, Any]] = {}

    def __call__(self, epoch: int, parameters: Parameters) -> None:
        for place, metrics in enumerate(self._evaluate(parameters)):
            if place not in self.best or metrics["accuracy"] > self.best[place]["accuracy"]:
                self.best[place] = metrics

    def _evaluate(self, parameters: Parameters) -> Iterator[dict[str, Any]]:
        for place, point in enumerate(self.points):
            one = model_at(parameters, place)
            fitted = Fitted(self.settings, one, point, self.store.class_counts)
            probabilities = predict(logits, fitted, self.samples)
            yield metrics_of(probabilities, self.store, self.groups)

    def rows(self, protocol: str) -> list[pd.DataFrame]:
        """Return the rows for metrics.csv; none where no epoch was watched."""
        return [
            metric_rows(metrics, place, self.points[place], protocol)
            for place, metrics in self.best.items()
        ]
