"""What every training job of stage one begins and ends with."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from ltpipe.artifacts.divergence import write_divergence
from ltpipe.artifacts.job import Job, run_identity
from ltpipe.config.backbones import backbone_settings
from ltpipe.config.datasets import NetworkInput
from ltpipe.data.loading import ImageSplit, open_split
from ltpipe.data.subset import Subset, read_subset
from ltpipe.models.building import build_network, save_weights
from ltpipe.training import distributed
from ltpipe.training.checkpoint import Checkpoint
from ltpipe.training.compiling import Decision, decide, remembered, report
from ltpipe.training.devices import describe, precision
from ltpipe.training.engine import (
    Epoch,
    Task,
    TrainingSet,
    autocast,
    learning_rates,
    run_epochs,
)
from ltpipe.utils.io import write_text_atomic
from ltpipe.utils.progress import say
from ltpipe.utils.seeding import stream_seed


@dataclass(frozen=True)
class Training:
    """A job's settings, images, fresh network and checkpoint.

    `run_info` is what the manifest says of how these came about.
    """

    settings: Any
    split: ImageSplit
    data: TrainingSet
    network: Any
    checkpoint: Checkpoint
    run_info: Mapping[str, Any]


@dataclass(frozen=True)
class Images:
    """A job's subset, and the images of its training part."""

    subset: Subset
    split: ImageSplit
    data: TrainingSet


def open_images(job: Job, network: NetworkInput | None = None) -> Images:
    """Open the training images that `job.spec` names.

    `network` is how a network sees them that brings its own statistics.
    """
    subset = read_subset(job.file("data", "subset.h5"))
    packed = job.packed_images()
    split = open_split(
        job.spec["dataset"], subset, "train", job.device, job.root, network, packed=packed
    )
    data = TrainingSet(split.batches, split.labels, split.pixels, subset.class_counts)
    return Images(subset, split, data)


def open_training(
    job: Job,
    images: Images | None = None,
    outputs: int | None = None,
    build: Callable[[Any, int, int], Any] = build_network,
) -> Training:
    """Build the network that `job.spec` asks for, and open its images unless they are given.

    `outputs` is the width of its classifier, the number of classes unless given; `build` makes the
    network of the settings, that width and the number of the images' channels.
    """
    settings = backbone_settings(job.spec["backbone"])
    images = images or open_images(job)
    subset, split = images.subset, images.split
    torch.manual_seed(stream_seed(job.seed, "weights"))
    network = build(settings, outputs or len(subset.class_names), split.channels)
    identity = run_identity(job.spec, subset.digest, distributed.size())
    run_info: dict[str, Any] = {}
    if settings.compile == "auto":
        decision = remembered(
            job.resume, identity, lambda: _whether_to_compile(job, settings, images, network)
        )
        settings = settings.model_copy(update={"compile": decision.compiled})
        run_info = report(decision)
    return Training(
        settings=settings,
        split=split,
        data=images.data,
        network=network,
        checkpoint=Checkpoint(job.resume, identity, job.checkpoint_every),
        run_info=run_info,
    )


def _whether_to_compile(job: Job, settings: Any, images: Images, network: Any) -> Decision:
    batch = min(settings.batch_size, len(images.data.labels))
    steps = settings.epochs * -(-len(images.data.labels) // batch)
    size = images.split.batches.augmentation.size
    blank = torch.zeros(batch, images.split.channels, *size, device=job.device)
    blank = blank.contiguous(memory_format=torch.channels_last)
    context = functools.partial(autocast, settings, job.device)
    return decide(network, blank, steps, context, job.device)


def train_task(
    job: Job,
    training: Training,
    task: Task,
    conclude: Callable[[list[Epoch]], str] = lambda history: "",
    samples: int | None = None,
) -> dict[str, Any]:
    """Run all epochs of `task`, write its results, return what the manifest says of the run.

    `conclude` is given the history first: it may leave files of its own, and it says why a run
    whose losses are finite did not converge, or nothing. `samples` is how many an epoch trains on,
    all unless given.
    """
    settings = training.settings
    history = run_epochs(
        task,
        learning_rates(settings),
        samples or len(training.data.labels),
        checkpoint=training.checkpoint,
        description=f"{settings.network} ({settings.system}), seed {job.seed}",
    )
    return _finish(job, training, history, conclude(history))


def _finish(job: Job, training: Training, history: list[Epoch], diverged: str) -> dict[str, Any]:
    """Write model.safetensors and history.csv, and return what the manifest says of the run.

    A run that did not converge, because its loss is not finite or for the reason that `diverged`
    gives, leaves its weights as they are and a record of the reason. Of several processes the
    first writes.
    """
    if history and not math.isfinite(history[-1].loss):
        diverged = f"the loss is {history[-1].loss} after epoch {history[-1].epoch}"
    if distributed.rank() == 0:
        save_weights(training.network, job.output / "model.safetensors")
        _write_history(history, job.output / "history.csv")
        write_divergence(job.output, {0: diverged} if diverged else {})
        training.checkpoint.clear()
    seconds = sum(record.seconds for record in history)
    samples = len(training.data.labels)
    settings = training.settings
    dtype = precision(settings.precision, job.device, "training")
    if distributed.rank() == 0:
        say(
            f"trained {settings.network} ({settings.system}) on {describe(job.device)}: "
            f"{len(history)} epochs in {seconds:.1f} s{_last(history)}"
        )
        if diverged:
            say(f"did not converge: {diverged} (a lower learning_rate or precision: fp32 may help)")
    return {
        **({"diverged": diverged} if diverged else {}),
        **training.run_info,
        "precision": str(dtype).removeprefix("torch."),
        "images_on_device": training.split.batches.resident,
        "images_per_second": round(len(history) * samples / max(seconds, 1e-9), 1),
        "processes": distributed.size(),
    }


def _write_history(history: list[Epoch], path: Path) -> None:
    columns = [field.name for field in fields(Epoch)]
    write_text_atomic(path, pd.DataFrame(history, columns=columns).to_csv(index=False))


def _last(history: list[Epoch]) -> str:
    if not history:
        return ""
    return f", loss {history[-1].loss:.4f}, training accuracy {history[-1].accuracy:.1%}"
