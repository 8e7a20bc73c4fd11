"""CWS's second stage on cached features: from subclass scores to classes.

No gradient of the mapping reaches the backbone, so it may as well be trained after it, on the
subclass logits of cached views: those of the stage-one classifier on the cached features, which is
exact up to the type that views are cached in.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ltpipe.artifacts.job import Job
from ltpipe.features.store import FeatureStore
from ltpipe.losses.building import build_loss
from ltpipe.models.mapping import mapped, marginal_scores, owners, read_splitting
from ltpipe.stage2.core.batches import drawn_views
from ltpipe.stage2.core.heads import cosines, linear_logits
from ltpipe.stage2.core.inference import Fitted, Samples
from ltpipe.stage2.core.one_backbone import Features, finish, open_features
from ltpipe.stage2.core.retraining import recipe_of
from ltpipe.stage2.cws.perceptron import fit_mapping
from ltpipe.stage2.cws.settings import LabelMapping
from ltpipe.training.rules import phases
from ltpipe.utils.errors import InputError


def run(job: Job) -> dict[str, Any]:
    """Map the test images' subclass scores, by a perceptron fitted here or before, or by sums."""
    features = open_features(job, LabelMapping)
    settings = features.settings
    if features.test.logits is None:
        raise InputError(f"{features.test.path}: has no logits, so there is nothing to map")
    if settings.mapping == "marginal":
        weights = {"owners": owners(subclasses_of(features.test))[None]}
        return finish(job, features, logits, weights)
    if settings.mapping == "alternating":
        return _alternating(job, features)
    train = features.train
    weights = fit_mapping(
        view_logits(train, settings.views, job.device),
        torch.from_numpy(train.labels),
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
    return finish(job, features, logits, weights)


def logits(fitted: Fitted[LabelMapping], samples: Samples) -> Tensor:
    """Return the logits of classes (N, C), of a sum their log-probabilities, of subclass logits."""
    embedded, settings = samples["features"], fitted.settings
    classes = len(fitted.class_counts)
    assert embedded.logits is not None
    if settings.mapping == "marginal":
        return marginal_scores(embedded.logits, fitted.weights["owners"], classes).log()
    if settings.mapping == "alternating":
        scale = float(embedded.attributes["logit_scale"])
        return scale * mapped(fitted.weights, embedded.logits, fitted.facts["mapping_input"])
    outputs = mapped(fitted.weights, embedded.logits, settings.input)
    return build_loss(settings.loss, fitted.class_counts).logits(outputs)


def view_logits(store: FeatureStore, views: str, device: torch.device) -> Tensor:
    """Return subclass logits (V, N, S) of a training store's views; V = 1 for `plain` images.

    Raises:
        InputError: the store has no classifier, or no views where they are asked for.
    """
    if store.classifier_weight is None:
        raise InputError(f"{store.path}: carries no stage-one classifier, so views have no logits")
    bias = store.classifier_bias
    classifier = {"weight": torch.from_numpy(store.classifier_weight).to(device)}
    if bias is not None:
        classifier["bias"] = torch.from_numpy(bias).to(device)
    cosine = store.attributes.get("head", "linear") == "cosine"
    scale = float(store.attributes.get("logit_scale", 1.0))

    def of_view(view: Tensor) -> Tensor:
        inputs = view.to(device).float()
        if cosine:
            units = torch.nn.functional.normalize(inputs, dim=1)
            return scale * cosines(classifier["weight"], units)
        return scale * linear_logits(classifier, inputs)

    return torch.stack([of_view(view) for view in drawn_views(store, views)])


def subclasses_of(store: FeatureStore) -> list[int]:
    """Return the number of subclasses of each class; one each where the backbone has none."""
    default = [1] * len(store.class_names)
    return [int(number) for number in store.attributes.get("subclasses", default)]


def _alternating(job: Job, features: Features[LabelMapping]) -> dict[str, Any]:
    """Map by the perceptron that stage one trained beside the backbone."""
    folder = job.inputs["features.features"]
    splitting = read_splitting(folder)
    if not splitting.mapping:
        raise InputError(f"{folder}: stage one trained no mapping; set mapping: alternating there")
    weights = {name: value[None] for name, value in splitting.mapping.items()}
    return finish(job, features, logits, weights, mapping_input=splitting.input)
