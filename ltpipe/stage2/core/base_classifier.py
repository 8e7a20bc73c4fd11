"""The trained classifier that a method starts from: stage one's, or one fitted to its features."""

from __future__ import annotations

import numpy as np
import torch

from ltpipe.features.store import FeatureStore, checksum
from ltpipe.losses.softmax import CrossEntropyLoss
from ltpipe.stage2.core.batches import Sampling
from ltpipe.stage2.core.fit import Parameters, Recipe, fit, repeated
from ltpipe.stage2.core.heads import LinearModel, random_classifier
from ltpipe.stage2.core.logit_gradients import logit_gradient
from ltpipe.stage2.core.results import linear_classifier_of
from ltpipe.stage2.core.retraining import training_batches
from ltpipe.utils.seeding import generator
from ltpipe.utils.sharing import shared

# For features whose squares sum to one; others have them scaled, which gives the same logits.
_RATE, _DECAY = 2.0, 1e-5


def base_classifier(
    store: FeatureStore, initial: str, seed: int, device: torch.device
) -> Parameters:
    """Return weight (C, D) and bias (C,) of a classifier over the store's classes.

    Args:
        initial: `backbone`, the one of stage one, or `linear`, fitted here by cross-entropy to
            shuffled plain features.

    Raises:
        InputError: the store carries no stage-one classifier, and it is asked for.
    """
    if initial == "backbone":
        return backbone_head(store)
    # In a job of several results a path and the samples name the features.
    key = "base classifier", str(store.path), checksum(store.index), seed, str(device)
    return dict(shared(key, lambda: _fitted(store, seed, device)))


def _fitted(store: FeatureStore, seed: int, device: torch.device) -> Parameters:
    draws = generator(seed, "base classifier")
    start = random_classifier(len(store.class_names), store.features.shape[1], draws, cosine=False)
    square = max(float(np.einsum("nd,nd->n", store.features, store.features).mean()), 1e-12)
    recipe = Recipe(
        epochs=20,
        batch_size=128,
        learning_rate=_RATE / square,
        schedule="cosine",
        momentum=0.9,
        weight_decay=_DECAY * square,
    )
    fitted = fit(
        repeated(start, 1, device),
        LinearModel(logit_gradient(CrossEntropyLoss(), device=device), ("weight", "bias")),
        training_batches(store, Sampling("plain", "shuffle"), recipe.batch_size, seed, device),
        recipe,
        description="linear classifier to start from",
    )
    return {name: value[0] for name, value in fitted.items()}


def backbone_head(store: FeatureStore) -> Parameters:
    """Return weight and bias of the stage-one classifier; see `linear_classifier_of`."""
    weight, bias = linear_classifier_of(store)
    return {"weight": weight, "bias": bias}
