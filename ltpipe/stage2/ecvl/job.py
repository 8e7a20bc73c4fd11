"""ECVL's phase II: an adapter on frozen towers, and with everything added off BALLAD.

A linear adapter changes image features, class-balanced samples meet the prompts of all classes
(Ma et al., "A Simple Long-Tailed Recognition Baseline via Vision-Language Model", 2021). ECVL adds
a contrastive loss between two views of an image, and RandAugment whose strength follows each
sample's memory. Views come from the cache, by strength, where an epoch is a few matrix products.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor

from ltpipe.artifacts.job import Job
from ltpipe.features.store import FeatureStore
from ltpipe.stage2.core.fit import Recipe
from ltpipe.stage2.core.inference import Fitted, Samples
from ltpipe.stage2.core.one_backbone import finish, open_features
from ltpipe.stage2.core.texts import class_texts, text_logits, towers_of
from ltpipe.stage2.ecvl.adapter import Adapter, adapt
from ltpipe.stage2.ecvl.cached_views import CachedViews
from ltpipe.stage2.ecvl.memory import Memory
from ltpipe.stage2.ecvl.settings import ECVL
from ltpipe.stage2.ecvl.training import Contrast, MemoryUse, Phase2, Sampled, Texts, Views
from ltpipe.training.optimizers import SGD, AdamW


def run(job: Job) -> dict[str, Any]:
    """Fit the adapters of all sweep points at once and evaluate their last epoch.

    `job.inputs` has the store `features.features`; with `online: true` also the towers and images.
    """
    features = open_features(job, ECVL)
    settings, train = features.settings, features.train
    phase2 = prepare(settings, train, _source(job, settings, train), job.seed, job.device)
    seconds = phase2.run()
    weights = phase2.adapter.weights()
    if phase2.memory is not None:
        weights["memory"] = phase2.memory.values()
    facts: dict[str, Any] = {
        "seconds_per_epoch": round(seconds / settings.epochs, 6),
        "online": settings.online,
    }
    return finish(job, features, logits, weights, towers=towers_of(train), **facts)


def logits(fitted: Fitted[ECVL], samples: Samples) -> Tensor:
    """Return the scaled cosines (N, C) of adapted features with the classes' texts."""
    text, scale = class_texts(samples["features"])
    weights, relu = fitted.weights, fitted.settings.adapter.relu
    share = weights["share"].view(1, 1)
    features = samples["features"].features
    adapted = adapt(features, weights["weight"], weights.get("bias"), share, relu)
    return text_logits(adapted, text, scale)


def prepare(
    settings: ECVL, train: FeatureStore, source: Views, seed: int, device: torch.device
) -> Phase2:
    """Return the training that the settings describe, before its first epoch."""
    points = settings.points()
    adapter = Adapter(
        train.features.shape[1],
        _at_points(points, "lambda", settings.adapter.share),
        seed,
        device,
        relu=settings.adapter.relu,
        bias=settings.adapter.bias,
    )
    contrast, memory = None, None
    if settings.needs_pairs():
        # Without the momentum loss the contrast is measured and not trained on.
        weights = [mu * settings.momentum for mu in _at_points(points, "mu", settings.mu)]
        contrast = Contrast(weights, settings.temperature)
    if settings.is_measured():
        number, signed = len(train.labels), settings.deviation == "signed"
        memory = Memory(len(points), number, settings.beta, signed=signed, device=device)
    trained = [value for value in (adapter.weight, adapter.bias) if value is not None]
    decay, momentum = settings.weight_decay, settings.sgd_momentum
    optimizer: AdamW | SGD = SGD(trained, momentum=momentum, weight_decay=decay)
    if settings.optimizer == "adamw":
        optimizer = AdamW(trained, weight_decay=decay)
    text, scale = class_texts(train)
    return Phase2(
        Sampled(
            torch.from_numpy(train.labels),
            len(train.class_names),
            settings.sampler,
            settings.per_class,
        ),
        source,
        adapter,
        Texts(text.to(device), scale),
        Recipe(
            epochs=settings.epochs,
            batch_size=settings.batch_size,
            learning_rate=settings.learning_rate,
            schedule=settings.schedule,
            momentum=momentum,
            weight_decay=decay,
        ),
        optimizer,
        seed,
        device,
        contrast=contrast,
        memory=memory,
        use=MemoryUse(
            strength=settings.randaugment,
            sampling=settings.memory_sampling,
            all_samples=settings.memory_update == "all",
        ),
    )


def _at_points(
    points: list[dict[str, float]], name: str, value: float | list[float]
) -> list[float]:
    return [point[name] if isinstance(value, list) else value for point in points]


def _source(job: Job, settings: ECVL, train: FeatureStore) -> Views:
    if settings.online:
        # Imported only here: whoever uses the cache does not depend on how images are run.
        online = importlib.import_module("ltpipe.stage2.ecvl.online")
        return online.OnlineViews(job, train, randaugment=settings.randaugment)
    return CachedViews(
        train,
        job.device,
        plain=settings.views == "plain",
        by_strength=settings.randaugment,
        pairs=settings.needs_pairs(),
    )
