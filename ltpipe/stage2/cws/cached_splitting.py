"""CWS on a frozen backbone: shells of cached features, a classifier over them, a mapping.

It shows how much of CWS needs the backbone's training. Centres are the exact class means of the
plain features, and each sample's subclass stays as it is; all its views share it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ltpipe.artifacts.job import Job
from ltpipe.config.methods import CachedSplitting
from ltpipe.models.mapping import marginal_scores, owners
from ltpipe.stage1.cws.clustering import Clustering
from ltpipe.stage1.cws.subclasses import spread_of, subclass_counts
from ltpipe.stage2.core.batches import Rows, UnitRows, drawn_views, joined_views
from ltpipe.stage2.core.decoupled import Features, finish, open_features
from ltpipe.stage2.core.fit import Parameters, fit, stacked
from ltpipe.stage2.core.heads import (
    CosineModel,
    LinearModel,
    cosine_scores,
    linear_scores,
    model_at,
    random_directions,
    random_linear,
)
from ltpipe.stage2.core.retraining import recipe_of
from ltpipe.stage2.core.scoring import Fitted, Samples
from ltpipe.stage2.cws.mapping_fit import Phased, fit_mapping, head_of, mapped_logits
from ltpipe.utils.seeding import generator


def run(job: Job) -> dict[str, Any]:
    """Cluster the training features, fit a classifier over subclasses and a mapping, evaluate."""
    features = open_features(job, CachedSplitting)
    settings, train = features.settings, features.train
    plain = torch.from_numpy(train.features)
    labels = torch.from_numpy(train.labels)
    spread = spread_of(plain, labels, features.classes)
    subclasses = subclass_counts(settings.subclasses, train.class_counts, spread)
    clustering = Clustering(subclasses, plain.shape[1], scope="epoch")
    pseudo = clustering.assign(plain, labels)
    # A subclass without samples has no weight or margin of its own; one sample stands in for none.
    counts = clustering.restart().clamp_min(1).tolist()
    found = _fit_classifier(features, pseudo, counts, job)
    weights = {**found, "owners": owners(subclasses).repeat(len(settings.points()), 1)}
    if settings.mapping == "marginal":
        return finish(job, features, scores, weights, subclasses=subclasses)
    tables = [view.to(job.device).float() for view in drawn_views(train, settings.views)]
    first = model_at(found, 0)
    logits = torch.stack([_logits(first, view, settings) for view in tables])
    mapping = fit_mapping(
        logits, labels, settings, train.class_counts, job.spec["seed"], job.device
    )
    return finish(job, features, scores, {**weights, **mapping}, subclasses=subclasses)


def scores(fitted: Fitted, samples: Samples) -> Tensor:
    """Return the logits of classes, of logits over subclasses."""
    settings, weights = fitted.settings, fitted.weights
    logits = _logits(weights, samples["features"].features, settings)
    if settings.mapping == "marginal":
        return marginal_scores(logits, weights["owners"], len(fitted.class_counts)).log()
    return mapped_logits(weights, logits, settings)


def _fit_classifier(features: Features, pseudo: Tensor, counts: list[int], job: Job) -> Parameters:
    settings, train = features.settings, features.train
    table = joined_views([drawn_views(train, settings.views).to(job.device)])
    width, total, draws = table.shape[1], len(counts), generator(job.spec["seed"], "classifier")
    rows: Rows
    if head_of(settings) == "cosine":
        start = {"weight": random_directions(total, width, draws)}
        rows = UnitRows(table)
    else:
        weight, bias = random_linear(total, width, draws)
        start = {"weight": weight, "bias": bias}
        rows = Rows(table)
    labels = torch.from_numpy(train.labels)
    phased = Phased(settings, counts, labels, features.classes, job.spec["seed"], job.device)
    cosine = head_of(settings) == "cosine"
    return fit(
        {
            name: stacked([value], len(settings.points())).to(job.device)
            for name, value in start.items()
        },
        CosineModel(phased) if cosine else LinearModel(phased, ("weight", "bias")),
        phased.batches(rows, len(table) // len(labels), pseudo),
        recipe_of(settings, 1, job.device),
        on_epoch=phased.on_epoch,
        description=f"classifier over {total} subclasses",
    )


def _logits(one: Parameters, inputs: Tensor, settings: Any) -> Tensor:
    """Return one classifier's subclass logits (N, S) of features (N, D)."""
    if head_of(settings) == "cosine":
        scale = settings.loss.scale
        return scale * cosine_scores(one["weight"], F.normalize(inputs, dim=1))
    return linear_scores(one, inputs)
