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
from ltpipe.losses.base import Loss
from ltpipe.losses.building import build_loss
from ltpipe.models.mapping import mapped, marginal_scores, owners
from ltpipe.stage1.cws.clustering import Clustering
from ltpipe.stage1.cws.subclasses import spread_of, subclass_counts
from ltpipe.stage2.core.batches import Rows, UnitRows, drawn_views
from ltpipe.stage2.core.fit import Parameters, fit, repeated
from ltpipe.stage2.core.heads import (
    classifier_model,
    cosines,
    linear_logits,
    model_at,
    random_classifier,
)
from ltpipe.stage2.core.inference import Fitted, Samples
from ltpipe.stage2.core.one_backbone import Features, finish, open_features
from ltpipe.stage2.core.retraining import recipe_of
from ltpipe.stage2.cws.perceptron import Phased, fit_mapping
from ltpipe.stage2.cws.settings import CachedSplitting
from ltpipe.training.rules import phases
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
    classifiers = _fit_classifier(job, features, pseudo, counts)
    weights = {**classifiers, "owners": owners(subclasses).repeat(len(settings.points()), 1)}
    if settings.mapping == "mlp":
        loss = build_loss(settings.loss, counts)
        first = model_at(classifiers, 0)
        views = [view.to(job.device).float() for view in drawn_views(train, settings.views)]
        weights |= fit_mapping(
            torch.stack([_subclass_logits(first, view, loss) for view in views]),
            labels,
            features.classes,
            build_loss(settings.loss, train.class_counts),
            phases(settings.rule, train.class_counts, settings.epochs),
            recipe_of(settings),
            job.seed,
            job.device,
            cosine=settings.loss.takes_cosines,
            hidden=settings.hidden,
            input=settings.input,
            per_class=settings.per_class,
        )
    return finish(job, features, logits, weights, subclasses=subclasses)


def logits(fitted: Fitted[CachedSplitting], samples: Samples) -> Tensor:
    """Return the logits of classes (N, C), of a sum their log-probabilities."""
    settings, weights = fitted.settings, fitted.weights
    loss = build_loss(settings.loss, fitted.class_counts)
    of_subclasses = _subclass_logits(weights, samples["features"].features, loss)
    if settings.mapping == "marginal":
        return marginal_scores(of_subclasses, weights["owners"], len(fitted.class_counts)).log()
    return loss.logits(mapped(weights, of_subclasses, settings.input))


def _fit_classifier(
    job: Job, features: Features[CachedSplitting], pseudo: Tensor, counts: list[int]
) -> Parameters:
    settings, train, seed = features.settings, features.train, job.seed
    views = drawn_views(train, settings.views).to(job.device)
    cosine, recipe = settings.loss.takes_cosines, recipe_of(settings)
    draws = generator(seed, "classifier")
    start = random_classifier(len(counts), views.shape[2], draws, cosine=cosine)
    phased = Phased(
        build_loss(settings.loss, counts),
        phases(settings.rule, counts, settings.epochs),
        torch.from_numpy(train.labels),
        features.classes,
        seed,
        job.device,
        per_class=settings.per_class,
    )
    rows = (UnitRows if cosine else Rows)(views.flatten(0, 1))
    return fit(
        repeated(start, recipe.points, job.device),
        classifier_model(phased, cosine=cosine),
        phased.batches(rows, len(views), recipe.batch_size, pseudo),
        recipe,
        on_epoch=phased.on_epoch,
        description=f"classifier over {len(counts)} subclasses",
    )


def _subclass_logits(one: Parameters, inputs: Tensor, loss: Loss) -> Tensor:
    """Return one classifier's subclass logits (N, S) of features (N, D)."""
    if loss.takes_cosines:
        return loss.logits(cosines(one["weight"], F.normalize(inputs, dim=1)))
    return linear_logits(one, inputs)
