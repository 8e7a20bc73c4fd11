"""Heads on cached features: Gaussians from a large store on disk to metrics, a decay's sweep."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import peers
import torch
from measure import CPU, Result, Run, alternate, seconds_of
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from stage2 import LARGE, large_store

from ltpipe.artifacts.job import Job
from ltpipe.features.store import write_features
from ltpipe.losses.softmax import BalancedSoftmaxLoss
from ltpipe.stage2.core.batches import Sampling
from ltpipe.stage2.core.classifiers import fit_classifiers
from ltpipe.stage2.core.fit import Recipe
from ltpipe.stage2.heads import gda

TEST = 2000
DECAYS = tuple(10.0**power for power in np.linspace(-5, 0, 15))


def gaussians(run: Run) -> Iterator[Result]:
    """Seconds from a store that the system has not in memory to metrics.csv."""
    _, dimension, classes = LARGE
    sizes = [4000] if run.quick else [LARGE[0], *([1_000_000] if run.full else [])]
    for samples in sizes:
        with tempfile.TemporaryDirectory() as folder:
            yield _gaussians(run, Path(folder), samples, dimension, classes)


def _gaussians(run: Run, folder: Path, samples: int, dimension: int, classes: int) -> Result:
    store = large_store(samples)
    for split, rows in (("train", samples), ("test", TEST)):
        write_features(
            folder / f"{split}.h5",
            features=store.features[:rows],
            labels=store.labels[:rows],
            class_names=store.class_names,
            class_counts=store.class_counts,
        )

    def ours() -> float:
        for split in ("train", "test"):
            with (folder / f"{split}.h5").open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        spec = {"method": {"kind": "gda", "shrinkage": 0.1}, "groups": "ranks", "seed": 0}
        return seconds_of(lambda: gda.run(Job(spec, {"features.features": folder}, folder, CPU)))

    def solver() -> float:
        model = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.1)
        return seconds_of(lambda: model.fit(store.features, store.labels))

    product, peer = alternate(ours, solver, 1)
    loop = peers.linear_epoch(
        torch.from_numpy(store.features), torch.from_numpy(store.labels), classes, 64
    )
    flops = 2 * samples * dimension**2
    read = samples * dimension * 4 / run.limits["disk read, cold"]
    computed = flops / run.limits["product fp32"]
    return Result(
        f"GDA, {samples:,} x {dimension:,}",
        "s",
        product,
        peer,
        f"{classes} classes, from a cold store to metrics; the ceilings of reading and products "
        f"leave {read + computed:.2f} s; peer: scikit-learn's LDA, features in memory; one epoch "
        f"of the usual SGD loop: {loop:.2f} s",
    )


def decays(run: Run) -> Iterator[Result]:
    """15 decays of one linear classifier, fitted together and one after another."""
    store = large_store(2000 if run.quick else 10_000)
    loss = BalancedSoftmaxLoss(store.class_counts)

    def fitted(grid: tuple[float, ...]) -> None:
        recipe = Recipe(2, 128, 0.01, "cosine", 0.9, grid if len(grid) > 1 else grid[0])
        fit_classifiers(store, loss, recipe, Sampling("plain", "shuffle"), 0, CPU)

    together, apart = alternate(
        lambda: seconds_of(lambda: fitted(DECAYS)),
        lambda: seconds_of(lambda: [fitted((decay,)) for decay in DECAYS]),
        1,
    )
    yield Result(
        "decay sweep, 15 heads",
        "s",
        together,
        apart,
        f"{len(store.labels):,} x 2,048, 1,000 classes, 2 epochs; peer: one after another",
    )
