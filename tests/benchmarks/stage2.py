"""Stage two's loops: sweeps on cached features, a large classifier, DLSA's filter, ECVL."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from pathlib import Path

import ceilings
import flow
import numpy as np
import peers
import phase2
import short_job
import torch
import work
from measure import CPU, Result, Run, alternate, one_thread, seconds_of

from ltpipe.data.longtail import class_counts
from ltpipe.features.store import FeatureStore
from ltpipe.losses.margin import LDAMLoss
from ltpipe.losses.softmax import CrossEntropyLoss
from ltpipe.stage2.core.batches import Draws, FusedBatches, Sampling
from ltpipe.stage2.core.classifiers import fit_classifiers
from ltpipe.stage2.core.fit import Recipe, fit
from ltpipe.stage2.core.heads import CosineModel
from ltpipe.stage2.core.logit_gradients import logit_gradient
from ltpipe.training.devices import precision
from ltpipe.utils.seeding import generator

COEFFICIENTS = torch.linspace(0, 1, 11)
# ImageNet-LT's training images, ResNet-50's features, classes.
LARGE = (115_846, 2048, 1000)


def centred_features(
    counts: list[int], seeds: Iterable[int]
) -> tuple[dict[tuple[str, int], torch.Tensor], torch.Tensor]:
    """Return one view (1, N, 64) of each branch's and seed's features, and labels (N,)."""
    labels = torch.repeat_interleave(torch.arange(10), torch.tensor(counts))
    centres = torch.randn(10, 64, generator=generator(0, "centres"))
    tables = {
        (branch, seed): (
            centres[labels]
            + torch.randn(len(labels), 64, generator=generator(seed, "features", branch))
        )[None]
        for branch in ("kps", "ce")
        for seed in seeds
    }
    return tables, labels


def sweep_fit(
    tables: dict[tuple[str, int], torch.Tensor],
    labels: torch.Tensor,
    counts: list[int],
    epochs: int,
    device: torch.device = CPU,
) -> None:
    """Fit FFN's classifiers of 11 coefficients, as a job does."""
    start = torch.randn(10, 64, generator=generator(0, "start")).expand(11, -1, -1)
    draws = Draws(labels, 1, 0, classes=10, sampler="balanced")
    kps, ce = (tables[branch, 0].to(device) for branch in ("kps", "ce"))
    batches = FusedBatches(kps, ce, draws, COEFFICIENTS.to(device), 64)
    model = CosineModel(logit_gradient(LDAMLoss(counts), device=device))
    recipe = Recipe(epochs, 64, 0.1, "cosine", 0.9, 2e-4)
    fit({"weight": start.to(device, copy=True)}, model, batches, recipe)


def sweep(run: Run) -> Iterator[Result]:
    counts = class_counts(10, 5000, 100)
    tables, labels = centred_features(counts, [0])
    epochs = 5 if run.quick else 30

    def lone(w1: float) -> float:
        kps, ce = tables["kps", 0][0], tables["ce", 0][0]
        return peers.lone_fusion_run(kps, ce, labels, counts, w1, epochs)

    def theirs() -> float:
        return sum(map(lone, COEFFICIENTS.tolist())) if run.full else 11 * lone(0.5)

    with one_thread():
        product, peer = alternate(
            lambda: seconds_of(lambda: sweep_fit(tables, labels, counts, epochs)),
            theirs,
            1 if run.full else 2,
        )
    # Of each model in each epoch: both products of every batch.
    flops = epochs * work.linear_step_flops(len(labels), 10, 64)
    yield Result(
        "FFN sweep, 11 models",
        "models/s",
        11 / product,
        11 / peer,
        f"{epochs} epochs; peer: "
        + ("11 runs" if run.full else f"one run of {peer / 11:.2f} s, times 11"),
        ceilings.product_name(torch.float32, 1),
        flops,
    )


@functools.cache
def large_store(samples: int) -> FeatureStore:
    """Return random features of ImageNet-LT's shape, made once: 949 MB for all the samples."""
    _, dimension, classes = LARGE
    labels = np.arange(samples) % classes
    return FeatureStore(
        path=Path("large"),
        features=np.random.default_rng(0).random((samples, dimension), dtype=np.float32),
        labels=labels,
        index=np.arange(samples),
        class_counts=np.bincount(labels, minlength=classes).tolist(),
        class_names=[str(label) for label in range(classes)],
    )


def large(run: Run) -> Iterator[Result]:
    """One epoch of one linear classifier, by the code that `ltpipe classify` runs."""
    samples, dimension, classes = LARGE
    samples = 3200 if run.quick else samples
    store = large_store(samples)
    features, labels = torch.from_numpy(store.features), torch.from_numpy(store.labels)

    def ours(batch: int) -> float:
        recipe = Recipe(1, batch, 0.1, "cosine", 0.9, 5e-4)
        sampling = Sampling("plain", "shuffle")
        loss = CrossEntropyLoss()
        return seconds_of(lambda: fit_classifiers(store, loss, recipe, sampling, 0, CPU))

    product, peer = alternate(
        lambda: ours(64),
        lambda: peers.linear_epoch(features, labels, classes, 64),
        1 if run.quick else 2,
    )
    steps = -(-samples // 64)
    traffic = steps * work.linear_step_bytes(64, classes, dimension)
    flops = work.linear_step_flops(samples, classes, dimension)
    moved, computed = traffic / run.limits["memory copy"], flops / run.limits["product fp32"]
    yield Result(
        "large stage two, equal recipe",
        "epochs/s",
        1 / product,
        1 / peer,
        f"batch 64, float32; of an epoch's {product:.2f} s the ceilings leave {computed:.2f} s to "
        f"{flops / 1e12:.2f} TFLOP of products and {moved:.2f} s to {traffic / 1e9:.0f} GB of "
        f"weights, momentum and gradients, {(computed + moved) / product:.0%} together; three "
        f"times the peer would be {peer / 3:.2f} s",
        "memory copy",
        traffic,
    )
    batch = 2048
    yield Result(
        "large stage two, large batch",
        "epochs/s",
        1 / min(ours(batch), ours(batch)),
        1 / peer,
        f"batch {batch} beside the peer's 64: another recipe",
        "product fp32",
        flops,
    )


def optimizer(run: Run) -> Iterator[Result]:
    """Why SGD and AdamW are not torch's classes: the first of those imports torch's compiler."""
    ours, theirs = short_job.short_job(run.quick)
    yield Result(
        "short job, SGD",
        "s/job",
        ours,
        theirs,
        "CPU-seconds of a fresh process: 30 epochs of a filter on 297 x 64; peer: torch.optim.SGD",
    )


def dlsa_filter(run: Run) -> Iterator[Result]:
    """Each form runs in a process of its own, so that peaks of memory are its own."""
    found = flow.filter_step(run.quick)
    yield Result(
        "DLSA filter step",
        "steps/s",
        1 / found.product.seconds,
        1 / found.peer.seconds,
        f"2048-d, 500 clusters; peak memory {found.product.megabytes:,.0f} and "
        f"{found.peer.megabytes:,.0f} MB",
        ceilings.product_name(precision("auto", CPU, "products")),
        work.flow_step_flops(flow.BATCH, flow.DIMENSION, flow.DIMENSION, flow.CLUSTERS),
    )


def ecvl(run: Run) -> Iterator[Result]:
    for network in ["small-resnet"] if run.quick else ["small-resnet", "RN50"]:
        with one_thread():
            found = phase2.phase2_epoch(network)
        yield Result(
            f"ECVL phase II, {network}",
            "epochs/s",
            1 / found.cached,
            1 / found.online,
            f"peer: towers in the loop; 100 images take {found.latency:.3f} s",
        )
