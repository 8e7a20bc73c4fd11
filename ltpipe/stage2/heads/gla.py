"""GLA: a zero-shot classifier freed of its pretraining prior, and a head trained here, multiplied.

Zhu et al., "Generalized Logit Adjustment: Calibrating Fine-tuned Models by Removing Label Bias in
Foundation Models", NeurIPS 2023. Of zero-shot logits s and a trained head's z:

1. s and z are divided by temperatures at which mean confidence equals accuracy;
2. the pretraining prior q minimises ``CE(softmax(s / T_s - log q), y)`` over the simplex, a convex
   problem in log q; on long-tailed samples ``+ log pi`` stands in the softmax, else q takes the
   sample's own prior up;
3. the sum is ``z / T_z + s / T_s - log q``, less ``log pi`` where the head has the training prior.

The long-tail code is not released. The head here is a cosine classifier that starts from the class
texts, trained under ``+ log pi``, so nothing is taken off for it. q is estimated on the training
set, which the zero-shot classifier never saw; temperatures of z on held-out samples.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from ltpipe.config.base import Float
from ltpipe.config.registry import method
from ltpipe.stage2.core.settings import OnTexts, Tuned

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from ltpipe.artifacts.job import Job
    from ltpipe.features.store import FeatureStore
    from ltpipe.stage2.core.inference import Fitted, Samples


@method("gla", paper="Zhu et al., NeurIPS 2023")
class GLA(Tuned, OnTexts):
    """A zero-shot classifier without its pretraining prior, and a trained cosine head, multiplied.

    `prior_samples` is how many samples a class the pull of the estimated prior towards a uniform
    one is worth. Held-out samples give the head's temperature.
    """

    kind: Literal["gla"]
    prior_samples: Float = Field(default=1.0, ge=0)
    sampler: Literal["balanced", "shuffle", "effective", "sqrt"] = "shuffle"
    learning_rate: Float | list[Float] = 0.01

    def needs_validation(self) -> bool:
        return True

    def points(self) -> list[dict[str, float]]:
        return [{}] if self.select == "validation" else self.grid()


def run(job: Job) -> dict[str, Any]:
    """Train the head, estimate prior and temperatures, and multiply both."""
    import numpy as np
    import torch

    from ltpipe.stage2.core.choosing import chosen_by
    from ltpipe.stage2.core.held_out import best_place, mean_class_accuracy
    from ltpipe.stage2.core.one_backbone import finish, open_features
    from ltpipe.stage2.core.texts import class_texts, text_logits, towers_of

    features = open_features(job, GLA)
    settings, train = features.settings, features.train
    text, scale = class_texts(train)
    tuning, held_out = chosen_by(job, settings)

    def head_logits(weight: Tensor, store: FeatureStore) -> np.ndarray:
        rows = torch.from_numpy(store.features).to(job.device)
        return _cosines(rows, weight, scale).cpu().numpy().astype(np.float64)

    tuned = _fit(job, settings, tuning)
    found = [head_logits(weight, held_out) for weight in tuned]
    grid = settings.grid()
    chosen: dict[str, Any] = {}
    places = list(range(len(grid)))
    if settings.select == "validation":
        accuracies = [mean_class_accuracy(z.argmax(1), held_out.labels) for z in found]
        places = [best_place(accuracies)]
        settings, chosen = settings.at(grid[places[0]]), {"chosen": grid[places[0]]}
    weights = _fit(job, settings, train)
    zero_shot = text_logits(torch.from_numpy(train.features), text, scale).double().numpy()
    own = matching_temperature(zero_shot, train.labels)
    log_prior = fit_prior(zero_shot / own, train.labels, train.class_counts, settings.prior_samples)
    temperatures = [matching_temperature(found[place], held_out.labels) for place in places]
    points = len(places)
    tensors = {
        "weight": weights,
        "temperature": torch.tensor(temperatures),
        "text_temperature": torch.full((points,), own),
        "log_prior": torch.from_numpy(log_prior).float().expand(points, -1),
    }
    facts: dict[str, Any] = {**chosen, "held_out": len(held_out.labels), "towers": towers_of(train)}
    return finish(job, features, logits, tensors, **facts)


def logits(fitted: Fitted[GLA], samples: Samples) -> Tensor:
    """Return the two classifiers' calibrated logits less the pretraining prior's log, (N, C)."""
    from ltpipe.stage2.core.texts import class_texts, text_logits

    given, weights = samples["features"], fitted.weights
    text, scale = class_texts(given)
    head = _cosines(given.features, weights["weight"], scale) / weights["temperature"]
    zero_shot = text_logits(given.features, text, scale) / weights["text_temperature"]
    return head + zero_shot - weights["log_prior"]


def matching_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """Return the T at which the mean confidence of logits (N, C) over T is their accuracy.

    It lies between 0.01 and 100; an accuracy that no T there gives takes the nearer end.
    """
    import math

    from scipy.optimize import brentq
    from scipy.special import softmax

    accuracy = float((logits.argmax(1) == labels).mean())

    def excess(log_temperature: float) -> float:
        confident = softmax(logits / math.exp(log_temperature), axis=1).max(1)
        return float(confident.mean()) - accuracy

    low, high = math.log(0.01), math.log(100)
    if excess(low) <= 0:
        return 0.01
    if excess(high) >= 0:
        return 100.0
    return math.exp(brentq(excess, low, high, xtol=1e-6))


def fit_prior(
    logits: np.ndarray, labels: np.ndarray, class_counts: list[int], samples: float
) -> np.ndarray:
    """Return the log of the pretraining prior (C,) that calibrated zero-shot logits carry.

    It minimises ``-sum_i log softmax(s_i - u + log pi)_{y_i} - samples sum_c log softmax(u)_c``.

    Args:
        logits: (N, C), float64.
        labels: (N,).
        class_counts: (C,) of the samples, which give pi; all the same for balanced samples.
        samples: how many samples a class the pull towards a uniform prior is worth.
    """
    import numpy as np
    from scipy.optimize import minimize
    from scipy.special import log_softmax, softmax

    counts = np.asarray(class_counts, np.float64)
    known = logits + np.log(counts / counts.sum())
    number, classes = logits.shape
    frequency = np.bincount(labels, minlength=classes) / number
    pull = samples / number

    def objective(u: np.ndarray) -> tuple[float, np.ndarray]:
        logs = log_softmax(known - u, axis=1)
        prior = log_softmax(u)
        value = -logs[np.arange(number), labels].mean() - pull * prior.sum()
        # With a mean prediction p, d/du CE = frequency - p; d/du of the pull is C q - 1.
        gradient = frequency - np.exp(logs).mean(0) + pull * (classes * softmax(u) - 1)
        return float(value), gradient

    options = {"ftol": 1e-15, "gtol": 1e-10, "maxiter": 2000}
    found = minimize(objective, np.zeros(classes), jac=True, method="L-BFGS-B", options=options)
    return log_softmax(found.x)


def _cosines(rows: Tensor, weight: Tensor, scale: float) -> Tensor:
    from ltpipe.stage2.core.batches import unit_rows
    from ltpipe.stage2.core.heads import cosines

    return scale * cosines(weight, unit_rows(rows))


def _fit(job: Job, settings: GLA, train: FeatureStore) -> Tensor:
    """Return the heads' weights (P, C, D) of all points."""
    from ltpipe.losses.softmax import LogitAdjustedLoss
    from ltpipe.stage2.core.batches import UnitRows
    from ltpipe.stage2.core.fit import fit, repeated
    from ltpipe.stage2.core.heads import CosineModel
    from ltpipe.stage2.core.logit_gradients import logit_gradient
    from ltpipe.stage2.core.retraining import recipe_of, sampling_of, training_batches
    from ltpipe.stage2.core.texts import class_texts

    text, scale = class_texts(train)
    recipe = recipe_of(settings)
    loss = LogitAdjustedLoss(train.class_counts)
    fitted = fit(
        repeated({"weight": text}, recipe.points, job.device),
        CosineModel(logit_gradient(loss, scale, job.device)),
        training_batches(
            train, sampling_of(settings), recipe.batch_size, job.seed, job.device, UnitRows
        ),
        recipe,
        description=f"cosine head from class texts, {recipe.points} models",
    )
    return fitted["weight"]
