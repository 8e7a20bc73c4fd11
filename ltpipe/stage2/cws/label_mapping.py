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
from ltpipe.config.methods import LabelMapping
from ltpipe.features.store import FeatureStore
from ltpipe.models.mapping import mapped, marginal_scores, owners, read_splitting
from ltpipe.stage2.core.batches import drawn_views
from ltpipe.stage2.core.decoupled import Features, finish, open_features
from ltpipe.stage2.core.heads import cosine_scores, linear_scores, model_at
from ltpipe.stage2.core.scoring import Fitted, Samples
from ltpipe.stage2.cws.mapping_fit import fit_mapping, mapped_logits
from ltpipe.utils.errors import InputError


def run(job: Job) -> dict[str, Any]:
    """Map the test images' subclass scores, by a perceptron fitted here or before, or by sums."""
    features = open_features(job, LabelMapping)
    settings = features.settings
    if features.test.logits is None:
        raise InputError(f"{features.test.path}: has no logits, so there is nothing to map")
    if settings.mapping == "marginal":
        weights = {"owners": owners(subclasses_of(features.test))[None]}
        return finish(job, features, scores, weights)
    if settings.mapping == "alternating":
        return _alternating(job, features)
    found = fit_mapping(
        view_logits(features.train, settings.views, job.device),
        torch.from_numpy(features.train.labels),
        settings,
        features.train.class_counts,
        job.spec["seed"],
        job.device,
    )
    return finish(job, features, scores, found)


def scores(fitted: Fitted, samples: Samples) -> Tensor:
    """Return the logits of classes, of subclass logits."""
    embedded, settings = samples["features"], fitted.settings
    classes = len(fitted.class_counts)
    assert embedded.logits is not None
    if settings.mapping == "marginal":
        # A softmax over log probabilities is what it was.
        return marginal_scores(embedded.logits, fitted.weights["owners"], classes).log()
    if settings.mapping == "alternating":
        scale = float(embedded.attributes["logit_scale"])
        return scale * mapped(fitted.weights, embedded.logits, fitted.facts["mapping_input"])
    return mapped_logits(fitted.weights, embedded.logits, settings)


def view_logits(store: FeatureStore, views: str, device: torch.device) -> Tensor:
    """Return subclass logits (V, N, S) of a training store's views; V = 1 for `plain` images.

    Raises:
        InputError: the store has no classifier, or no views where they are asked for.
    """
    if store.classifier_weight is None:
        raise InputError(f"{store.path}: carries no stage-one classifier, so views have no logits")
    weight, bias = store.classifier_weight, store.classifier_bias
    classifier = {"weight": torch.from_numpy(weight)[None].to(device)}
    if bias is not None:
        classifier["bias"] = torch.from_numpy(bias)[None].to(device)
    cosine = store.attributes.get("head", "linear") == "cosine"
    scale = float(store.attributes.get("logit_scale", 1.0))

    def logits(view: Tensor) -> Tensor:
        inputs = view.to(device).float()
        if cosine:
            units = torch.nn.functional.normalize(inputs, dim=1)
            return scale * cosine_scores(classifier["weight"][0], units)
        return scale * linear_scores(model_at(classifier, 0), inputs)

    return torch.stack([logits(view) for view in drawn_views(store, views)])


def subclasses_of(store: FeatureStore) -> list[int]:
    """Return the number of subclasses of each class; one each where the backbone has none."""
    default = [1] * len(store.class_names)
    return [int(number) for number in store.attributes.get("subclasses", default)]


def _alternating(job: Job, features: Features) -> dict[str, Any]:
    """Map by the perceptron that stage one trained beside the backbone."""
    folder = job.inputs["features.features"]
    splitting = read_splitting(folder)
    if not splitting.mapping:
        raise InputError(f"{folder}: stage one trained no mapping; set mapping: alternating there")
    found = {name: value[None] for name, value in splitting.mapping.items()}
    return finish(job, features, scores, found, mapping_input=splitting.input)
