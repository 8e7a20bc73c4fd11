"""Fits of classifiers on one backbone's features, all points of a sweep at once."""

from __future__ import annotations

import torch

from ltpipe.features.store import FeatureStore
from ltpipe.losses.base import Loss
from ltpipe.stage2.core.base_classifier import base_classifier
from ltpipe.stage2.core.batches import Rows, Sampling
from ltpipe.stage2.core.fit import Parameters, Recipe, fit, repeated
from ltpipe.stage2.core.heads import LinearModel, classifier_model, random_classifier
from ltpipe.stage2.core.logit_gradients import logit_gradient
from ltpipe.stage2.core.retraining import training_batches
from ltpipe.utils.seeding import generator


def fit_classifiers(
    store: FeatureStore,
    loss: Loss,
    recipe: Recipe,
    sampling: Sampling,
    seed: int,
    device: torch.device,
    *,
    cosine: bool = False,
    rows: type[Rows] = Rows,
    scale: float = 1.0,
    initial: str = "random",
) -> Parameters:
    """Return the weights, and of linear classifiers biases, of the recipe's P points: (P, ...).

    Args:
        cosine: whether logits are cosines of the weight's rows with the inputs as they come.
        rows: how rows of the features are handed out.
        scale: by what logits are multiplied before the loss.
        initial: `random`, or that of `base_classifier`.

    Raises:
        InputError: the store carries no stage-one classifier, and one is needed.
    """
    if initial != "random":
        start = base_classifier(store, initial, seed, device)
        if cosine:
            del start["bias"]
    else:
        classes, dimension = len(store.class_names), store.features.shape[1]
        draws = generator(seed, "classifier")
        start = random_classifier(classes, dimension, draws, cosine=cosine)
    return fit(
        repeated(start, recipe.points, device),
        classifier_model(logit_gradient(loss, scale, device), cosine=cosine),
        training_batches(store, sampling, recipe.batch_size, seed, device, rows),
        recipe,
        description=f"{'cosine' if cosine else 'linear'} classifier, {recipe.points} models",
    )


def fit_scaled(
    store: FeatureStore,
    loss: Loss,
    recipe: Recipe,
    sampling: Sampling,
    seed: int,
    device: torch.device,
    *,
    initial: str,
    trained: tuple[str, ...],
) -> Parameters:
    """Return weight, bias and class-wise scale of the recipe's P points: (P, ...).

    They start as `base_classifier` gives them, with scales of 1; `trained` names what is trained.

    Raises:
        InputError: the store carries no stage-one classifier.
    """
    start = base_classifier(store, initial, seed, device)
    start["scale"] = torch.ones_like(start["bias"])
    return fit(
        repeated(start, recipe.points, device),
        LinearModel(logit_gradient(loss, device=device), trained),
        training_batches(store, sampling, recipe.batch_size, seed, device),
        recipe,
        description=f"scaled classifier, {recipe.points} models",
    )
