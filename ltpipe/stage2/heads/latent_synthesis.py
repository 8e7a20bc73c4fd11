"""Rare classes filled up with features drawn by the covariances of similar frequent ones.

After Sharma, "Efficient Long-Tail Learning in Latent Space by sampling Synthetic Data" (arXiv
2509.15859, 2025), and Ma et al. (arXiv 2508.13518, 2025), and no more than after them: the
equations are this package's own. A class outside the more frequent half takes the mean of the
covariances of its `neighbours` nearest classes inside it, by the cosine of class means, shrunk as
``(1 - l) S + l tr(S) / D I``; a draw is one of its own features plus ``L e``, L the Cholesky root
and e standard normal; a linear classifier is trained on real and drawn features together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator

from ltpipe.config.base import Float
from ltpipe.config.losses import Loss, loss_settings
from ltpipe.config.methods import different
from ltpipe.config.registry import method
from ltpipe.stage2.core.settings import Tuned

if TYPE_CHECKING:
    from torch import Tensor

    from ltpipe.artifacts.job import Job
    from ltpipe.features.store import FeatureStore
    from ltpipe.stage2.core.inference import Fitted, Samples


@method("latent-synthesis", paper="after Sharma, 2025, and Ma et al., 2025")
class LatentSynthesis(Tuned):
    """A linear classifier on real features and on ones drawn for the rarer half of the classes.

    `target` is the size that rarer classes are filled up to, as a share of the largest class; 0
    draws nothing. `neighbours` classes lend their covariances, shrunk by `shrinkage`.
    """

    swept = ("target", "learning_rate", "weight_decay")

    kind: Literal["latent-synthesis"]
    loss: Loss = loss_settings("ce")
    target: Float | list[Float] = [0.0, 0.1, 0.3, 1.0]  # noqa: RUF012
    neighbours: int = Field(default=3, ge=1)
    shrinkage: Float = Field(default=0.1, gt=0, le=1)
    sampler: Literal["balanced", "shuffle", "effective", "sqrt"] = "shuffle"
    select: Literal["validation", "none"] = "validation"

    @field_validator("target")
    @classmethod
    def _shares(cls, value: float | list[float]) -> float | list[float]:
        values = different("target", value)
        if not 0 <= min(values) <= max(values) <= 1:
            raise ValueError("target must lie between 0 and 1")
        return value


def run(job: Job) -> dict[str, Any]:
    """Draw features, fit the classifiers, and choose one by held-out samples."""
    import torch

    from ltpipe.losses.building import build_loss
    from ltpipe.stage2.core.choosing import run_chosen
    from ltpipe.stage2.core.classifiers import fit_classifiers
    from ltpipe.stage2.core.retraining import recipe_of, sampling_of

    def fit(settings: LatentSynthesis, train: FeatureStore) -> dict[str, Tensor]:
        targets = settings.target if isinstance(settings.target, list) else [settings.target]
        parts = []
        roots: dict[int, Any] = {}
        for target in targets:
            filled = fill_up(
                train,
                target,
                neighbours=settings.neighbours,
                shrinkage=settings.shrinkage,
                seed=job.seed,
                roots=roots,
            )
            parts.append(
                fit_classifiers(
                    filled,
                    build_loss(settings.loss, filled.class_counts),
                    recipe_of(settings.at({"target": target})),
                    sampling_of(settings),
                    job.seed,
                    job.device,
                )
            )
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    return run_chosen(job, LatentSynthesis, fit, logits)


def logits(fitted: Fitted[LatentSynthesis], samples: Samples) -> Tensor:
    """Return the logits (N, C)."""
    from ltpipe.stage2.core.heads import linear_logits

    return linear_logits(fitted.weights, samples["features"].features)


def fill_up(
    store: FeatureStore,
    target: float,
    *,
    neighbours: int,
    shrinkage: float,
    seed: int,
    roots: dict[int, Any] | None = None,
) -> FeatureStore:
    """Return the store with drawn features behind its own, class by class; see above.

    Each cached view of a sample gets a draw of its own. Drawn samples have the index -1. `roots`
    keeps the classes' covariance roots for other targets of the same store.
    """
    from dataclasses import replace

    import numpy as np

    counts = np.array(store.class_counts)
    size = int(target * counts.max())
    order = np.argsort(-counts, kind="stable")
    half = order[: -(-len(order) // 2)]
    rarer = [c for c in order[len(half) :] if 0 < counts[c] < size]
    if not rarer:
        return store
    means = np.stack([store.features[store.labels == c].mean(0) for c in range(len(counts))])
    units = means / np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)
    tables = [store.features[None], *([] if store.views is None else [store.views])]
    grown: list[list[np.ndarray]] = [[table] for table in tables]
    labels = [store.labels]
    covariances: dict[int, np.ndarray] = {}
    roots = {} if roots is None else roots
    for c in rarer:
        near = half[np.argsort(-(units[half] @ units[c]), kind="stable")][:neighbours]
        if c not in roots:
            roots[c] = _root([_covariance(store, k, covariances) for k in near], shrinkage)
        stream = np.random.default_rng([seed, int(c)])
        own = np.flatnonzero(store.labels == c)
        chosen = stream.choice(own, size - counts[c])
        for table, rows in zip(tables, grown, strict=True):
            drawn = stream.standard_normal((len(table), len(chosen), table.shape[2]), np.float32)
            rows.append((table[:, chosen] + drawn @ roots[c].T).astype(table.dtype))
        labels.append(np.full(len(chosen), c))
    whole = [np.concatenate(rows, axis=1) for rows in grown]
    everything = np.concatenate(labels)
    drawn_index = np.full(len(everything) - len(store.labels), -1)
    return replace(
        store,
        features=whole[0][0],
        views=None if store.views is None else whole[1],
        labels=everything,
        index=np.concatenate([store.index, drawn_index]),
        class_counts=np.bincount(everything, minlength=len(counts)).tolist(),
        logits=None,
    )


def _covariance(store: FeatureStore, label: int, known: dict[int, Any]) -> Any:
    import numpy as np

    if label not in known:
        rows = store.features[store.labels == label].astype(np.float64)
        rows -= rows.mean(0)
        known[label] = rows.T @ rows / max(len(rows) - 1, 1)
    return known[label]


def _root(covariances: list[Any], shrinkage: float) -> Any:
    """Return the lower Cholesky root (D, D), float32, of the mean of covariances, shrunk."""
    import numpy as np
    import torch

    from ltpipe.stage2.core.moments import shrunk

    mean = torch.from_numpy(np.mean(covariances, axis=0))
    return torch.linalg.cholesky(shrunk(mean, shrinkage)).float().numpy()
