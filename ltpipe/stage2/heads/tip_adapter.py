"""Tip-Adapter: class texts and a cache of training features that vote by similarity.

Zhang et al., "Tip-Adapter: Training-free Adaption of CLIP for Few-shot Classification", ECCV 2022,
eqs. 4 and 6: ``scale x't + alpha exp(-beta (1 - x'k)) L``, keys k the unit mean of a sample's
augmented views, values L one-hot. alpha and beta are chosen on the test set of ImageNet there, and
on held-out samples here. The sum over keys favours frequent classes; `votes: mean` divides by the
number of a class's keys.

Tip-Adapter-F (section 3.2) trains the keys by cross-entropy of these logits at ImageNet's starting
alpha and beta: AdamW with epsilon 1e-4, a cosine over all steps; keys leave unit length freely. The
released code takes its best epoch on the test set, here the last one counts.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator

from ltpipe.config.base import Float
from ltpipe.config.methods import different
from ltpipe.config.registry import method
from ltpipe.stage2.core.settings import Chosen, OnTexts

if TYPE_CHECKING:
    from torch import Tensor

    from ltpipe.artifacts.job import Job
    from ltpipe.features.store import FeatureStore
    from ltpipe.stage2.core.inference import Fitted, Samples

# At which keys are trained, as released for ImageNet.
_START_ALPHA, _START_BETA = 1.17, 1.0


@method("tip-adapter", paper="Zhang et al., ECCV 2022")
class TipAdapter(Chosen, OnTexts):
    """Class texts, and training features that vote by similarity; the keys may be trained.

    `alpha` weighs the votes, `beta` says how fast they fade with distance. `votes: mean` divides by
    the number of a class's keys, `sum` is the paper's. At most `keys` training samples a class are
    kept, all if null. `views: cached` takes the mean of the cached views, `plain` the plain image.
    `epochs` above 0 train the keys, Tip-Adapter-F.
    """

    swept = ("alpha", "beta")

    kind: Literal["tip-adapter"]
    alpha: Float | list[Float] = [0.3, 1.0, 3.0, 10.0, 30.0]  # noqa: RUF012
    beta: Float | list[Float] = [1.0, 3.0, 5.5, 10.0, 20.0]  # noqa: RUF012
    votes: Literal["mean", "sum"] = "mean"
    keys: int | None = Field(default=None, ge=1)
    views: Literal["cached", "plain"] = "cached"
    epochs: int = Field(default=0, ge=0)
    batch_size: int = Field(default=256, ge=1)
    learning_rate: Float = Field(default=1e-3, gt=0)

    @field_validator("alpha", "beta")
    @classmethod
    def _above_zero(cls, value: float | list[float]) -> float | list[float]:
        if min(different("alpha and beta", value)) <= 0:
            raise ValueError("alpha and beta must be greater than 0")
        return value

    def needs_views(self) -> bool:
        return self.views == "cached"


def run(job: Job) -> dict[str, Any]:
    """Keep the keys, and choose alpha and beta by held-out samples."""
    from ltpipe.stage2.core.choosing import run_chosen

    return run_chosen(job, TipAdapter, partial(_fit, job), logits)


def logits(fitted: Fitted[TipAdapter], samples: Samples) -> Tensor:
    """Return the scaled cosines with the classes' texts and the weighted votes, (N, C)."""
    from ltpipe.stage2.core.batches import unit_rows
    from ltpipe.stage2.core.texts import class_texts, text_logits

    given, weights = samples["features"], fitted.weights
    text, scale = class_texts(given)
    rows = unit_rows(given.features)
    votes = affinities(rows, weights["keys"], weights["beta"]) @ weights["values"]
    return text_logits(given.features, text, scale) + weights["alpha"] * votes


def affinities(rows: Tensor, keys: Tensor, beta: Tensor) -> Tensor:
    """Return ``exp(-beta (1 - x'k))`` (N, K) of unit rows (N, D) and unit keys (K, D)."""
    return (-beta * (1 - rows @ keys.T)).exp()


def _fit(job: Job, settings: TipAdapter, train: FeatureStore) -> dict[str, Tensor]:
    import torch
    from torch.nn import functional as F

    from ltpipe.stage2.core.batches import drawn_views, unit_rows
    from ltpipe.utils.seeding import generator

    labels = torch.from_numpy(train.labels)
    if settings.keys is not None:
        # The first of each class in a random order.
        order = torch.randperm(len(labels), generator=generator(job.seed, "keys"))
        kept = [order[labels[order] == c][: settings.keys] for c in range(len(train.class_names))]
        places = torch.cat(kept).sort().values
    else:
        places = torch.arange(len(labels))
    keys = drawn_views(train, settings.views)[:, places].to(job.device).float().mean(0)
    values = F.one_hot(labels[places], len(train.class_names)).float().to(job.device)
    if settings.votes == "mean":
        values = values / values.sum(0).clamp_min(1)
    keys = unit_rows(keys)
    if settings.epochs:
        keys = trained_keys(job, settings, train, keys, values)
    grid = settings.grid()
    return {
        "keys": keys.expand(len(grid), -1, -1),
        "values": values.expand(len(grid), -1, -1),
        "alpha": torch.tensor([point.get("alpha", settings.alpha) for point in grid]),
        "beta": torch.tensor([point.get("beta", settings.beta) for point in grid]),
    }


def trained_keys(
    job: Job, settings: TipAdapter, train: FeatureStore, keys: Tensor, values: Tensor
) -> Tensor:
    """Return the keys (K, D) of Tip-Adapter-F from those it starts at and their values (K, C)."""
    import math

    import torch
    from torch.nn import functional as F

    from ltpipe.stage2.core.batches import Sampling, UnitRows
    from ltpipe.stage2.core.inference import Embedded
    from ltpipe.stage2.core.retraining import training_batches
    from ltpipe.stage2.core.texts import class_texts, text_logits
    from ltpipe.training.optimizers import AdamW

    text, scale = class_texts(Embedded.of(train, job.device))
    keys = keys.clone().requires_grad_()
    optimizer = AdamW([keys], weight_decay=0.01, epsilon=1e-4)
    sampling = Sampling(settings.views, "shuffle")
    batches = training_batches(train, sampling, settings.batch_size, job.seed, job.device, UnitRows)
    steps = settings.epochs * math.ceil(len(train.labels) / settings.batch_size)
    step, beta = 0, torch.tensor(_START_BETA, device=job.device)
    for epoch in range(settings.epochs):
        for inputs, target in batches(epoch):
            rows = inputs[0]
            votes = affinities(rows, keys, beta) @ values
            loss = F.cross_entropy(text_logits(rows, text, scale) + _START_ALPHA * votes, target[0])
            loss.backward()
            optimizer.step(settings.learning_rate * (1 + math.cos(math.pi * step / steps)) / 2)
            step += 1
    return keys.detach()
