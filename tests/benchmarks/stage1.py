"""Stage one's loops: training, augmentation, embedding, clustering."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from typing import Any

import ceilings
import numpy as np
import peers
import torch
import work
from measure import CPU, Result, Run, alternate, one_thread, seconds_of

from ltpipe.config.backbones import Backbone
from ltpipe.data.augment import Augmentation
from ltpipe.data.batches import ImageBatches, open_batches
from ltpipe.data.images import ArrayImages
from ltpipe.data.loading import Pixels
from ltpipe.features.extract import embedder
from ltpipe.losses.softmax import CrossEntropyLoss
from ltpipe.models.resnet import resnet32
from ltpipe.stage1.cws.clustering import Clustering
from ltpipe.stage1.cws.subclasses import PRESETS
from ltpipe.training.devices import precision
from ltpipe.training.engine import TrainingSet, train
from ltpipe.utils.seeding import generator

PIXELS = Pixels([0.4914, 0.4822, 0.4465], [0.2023, 0.1994, 0.2010])
IMAGE = (3, 32, 32)


def cifar(samples: int) -> tuple[np.ndarray, torch.Tensor, ImageBatches]:
    """Return random images of CIFAR's shape, labels, and the product's batches of them."""
    stream = np.random.default_rng(0)
    images = stream.integers(0, 256, (samples, 32, 32, 3), dtype=np.uint8)
    labels = torch.from_numpy(stream.integers(0, 10, samples))
    augmentation = Augmentation((32, 32), padding=4, flip=True)
    return images, labels, open_batches(ArrayImages(images), np.arange(samples), augmentation, CPU)


def settings_of(compiled: bool = False) -> Backbone:
    """Return the settings of the measured trainings."""
    return Backbone.model_validate(
        {
            "network": "resnet32",
            "loss": {"name": "ce"},
            "epochs": 3 if compiled else 1,
            "batch_size": 128,
            "compile": compiled,
            "schedule": {"kind": "constant", "warmup": 0},
        }
    )


def training_set(batches: ImageBatches, labels: torch.Tensor) -> TrainingSet:
    """Return random images as a task trains on them."""
    return TrainingSet(batches, labels, PIXELS, [len(labels) // 10] * 10)


def our_epoch(batches: ImageBatches, labels: torch.Tensor, compiled: bool) -> Callable[[], float]:
    """Return a function that trains a fresh network and gives its fastest epoch's seconds."""
    settings = settings_of(compiled)
    data = training_set(batches, labels)

    def measure() -> float:
        history = train(resnet32(10), CrossEntropyLoss(), data, settings, seed=0, device=CPU)
        return min(record.seconds for record in history)

    return measure


def training(run: Run) -> Iterator[Result]:
    samples = 1280 if run.quick else 2560
    images, labels, batches = cifar(samples)
    ceiling = ceilings.product_name(precision("auto", CPU, "training"))
    flops = work.training_flops(resnet32(10), IMAGE)
    our_epoch(batches, labels, False)()
    peers.train_epoch(resnet32(10), images[:256], labels[:256], 128)
    ours, theirs = alternate(
        our_epoch(batches, labels, False),
        lambda: peers.train_epoch(resnet32(10), images, labels, 128),
        2 if run.quick else 3,
    )
    yield Result(
        "stage one, ResNet-32",
        "images/s",
        samples / ours,
        samples / theirs,
        ceiling=ceiling,
        work=flops,
    )
    if not run.quick:
        compiled = our_epoch(batches, labels, True)()
        again = peers.train_epoch(resnet32(10), images, labels, 128)
        yield Result(
            "stage one, compiled",
            "images/s",
            samples / compiled,
            samples / min(theirs, again),
            "after warm-up",
            ceiling,
            flops,
        )


def extraction(run: Run) -> Iterator[Result]:
    samples = 2560 if run.quick else 7680
    images, labels, batches = cifar(samples)
    network = resnet32(10).eval()
    dtype = precision("auto", CPU, "extraction")
    embed = embedder(network, PIXELS, dtype, CPU)

    @torch.inference_mode()
    def ours() -> None:
        torch.cat([embed(b) for b in batches.epoch(torch.arange(samples), 256, None)])

    ours()
    product, peer = alternate(
        lambda: seconds_of(ours), lambda: peers.embed(network, images, labels, 256), 3
    )
    yield Result(
        "embedding, ResNet-32",
        "images/s",
        samples / product,
        samples / peer,
        ceiling=ceilings.product_name(dtype),
        work=work.forward_flops(network, IMAGE),
    )


def augmentation(run: Run) -> Iterator[Result]:
    samples = 5120 if run.quick else 25600
    images, labels, batches = cifar(samples)

    def ours() -> None:
        draws = generator(0, "bench")
        for _ in batches.epoch(torch.randperm(samples), 128, draws):
            pass

    product, peer = alternate(
        lambda: seconds_of(ours), lambda: peers.load_epoch(images, labels, 128), 2
    )
    yield Result(
        "crop and flip",
        "images/s",
        samples / product,
        samples / peer,
        ceiling="memory copy",
        work=work.crop_bytes(32),
    )


def clustering(run: Run) -> Iterator[Result]:
    """CWS's step on features of a batch of 128, for ten classes and for a hundred."""
    rounds = 50 if run.quick else 300
    for classes in (10, 100):
        numbers = PRESETS["paper-18"] * (classes // 10)
        features = torch.randn(rounds, 128, 64, generator=generator(0, "features"))
        labels = torch.randint(classes, (rounds, 128), generator=generator(0, "labels"))

        steps = functools.partial(_clusterings, features, labels)
        with one_thread():
            product, peer = alternate(
                functools.partial(steps, functools.partial(Clustering, numbers, 64)),
                functools.partial(steps, functools.partial(peers.LoopClustering, numbers)),
                2,
            )
        yield Result(
            f"CWS clustering, {classes} classes",
            "steps/s",
            rounds / product,
            rounds / peer,
            "batch 128, 64-d; peer: a loop over samples",
            "memory copy, one thread",
            work.clustering_bytes(128, classes, 64),
        )


def _clusterings(features: torch.Tensor, labels: torch.Tensor, build: Callable[[], Any]) -> float:
    split = build()
    started = time.perf_counter()
    for batch, target in zip(features, labels, strict=True):
        split.assign(batch, target)
    return time.perf_counter() - started
