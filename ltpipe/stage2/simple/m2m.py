"""M2m in feature space: a classifier on samples of rare classes translated from frequent ones.

Kim et al., "M2m: Imbalanced Classification via Major-to-Minor Translation", CVPR 2020; see
`ltpipe.stage2.core.translation`.
"""

from __future__ import annotations

from typing import Any

import torch

from ltpipe.artifacts.job import Job
from ltpipe.config.methods import M2M
from ltpipe.features.store import FeatureStore
from ltpipe.losses.softmax import CrossEntropyLoss
from ltpipe.stage2.core.batches import Sampling
from ltpipe.stage2.core.classifiers import backbone_head, logits
from ltpipe.stage2.core.fit import Parameters, Recipe, fit, repeated
from ltpipe.stage2.core.heads import LinearModel, random_classifier
from ltpipe.stage2.core.logit_gradients import logit_gradient
from ltpipe.stage2.core.one_backbone import finish, open_features
from ltpipe.stage2.core.retraining import recipe_of, sampling_of, training_batches
from ltpipe.stage2.core.translation import TranslatedBatches, Translation, mean_norm
from ltpipe.utils.seeding import generator


def run(job: Job) -> dict[str, Any]:
    """Fit the classifiers of all sweep points at once and evaluate their last epoch."""
    features = open_features(job, M2M)
    settings = features.settings
    weights = fit_translated(
        features.train,
        Translation(
            beta=settings.beta,
            penalty=settings.penalty,
            steps=settings.steps,
            step_size=settings.step_size,
            noise=settings.noise,
            confidence=settings.confidence,
        ),
        recipe_of(settings),
        sampling_of(settings),
        job.spec["seed"],
        job.device,
        initial=settings.initial,
    )
    return finish(job, features, logits, weights)


def fit_translated(
    store: FeatureStore,
    translation: Translation,
    recipe: Recipe,
    sampling: Sampling,
    seed: int,
    device: torch.device,
    *,
    initial: str,
) -> Parameters:
    """Return weight and bias of the recipe's P points, fitted together: (P, ...).

    Raises:
        InputError: the store carries no stage-one classifier.
    """
    judge = start = backbone_head(store)
    if initial == "random":
        classes, dimension = judge["weight"].shape
        draws = generator(seed, "classifier")
        start = random_classifier(classes, dimension, draws, cosine=False)
    parameters = repeated(start, recipe.points, device)
    batches = TranslatedBatches(
        training_batches(store, sampling, recipe.batch_size, seed, device),
        parameters["weight"],
        judge,
        torch.tensor(store.class_counts),
        mean_norm(store),
        translation,
        seed,
        non_negative=bool((store.features >= 0).all()),
    )
    return fit(
        parameters,
        LinearModel(logit_gradient(CrossEntropyLoss(), device=device), ("weight", "bias")),
        batches,
        recipe,
        description=f"M2m, {recipe.points} models",
    )
