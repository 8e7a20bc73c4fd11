"""Train one backbone end to end on the long-tailed images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import torch

from ltpipe.config.backbones import Backbone
from ltpipe.config.base import canonical_json
from ltpipe.data.loading import open_split
from ltpipe.data.subset import read_subset
from ltpipe.io import write_text_atomic
from ltpipe.job import Job
from ltpipe.losses.building import build_loss
from ltpipe.models.building import build_network, save_weights
from ltpipe.progress import say
from ltpipe.seeding import stream_seed
from ltpipe.training.checkpoint import Checkpoint
from ltpipe.training.devices import describe, precision
from ltpipe.training.engine import Epoch, train


def run(job: Job) -> dict[str, Any]:
    """Train the backbone of `job.spec` and write model.safetensors and history.csv.

    `job.spec` has `dataset`, `backbone` and `seed`; `job.inputs["data"]` is the folder with
    subset.h5. While the job runs, its resume/ folder holds a checkpoint, from which a killed run
    goes on if spec, samples and code are still the same.
    """
    seed = job.spec["seed"]
    settings = Backbone.model_validate(job.spec["backbone"])
    subset = read_subset(job.inputs["data"] / "subset.h5")
    split = open_split(job.spec["dataset"], subset, "train", job.device, job.root)
    torch.manual_seed(stream_seed(seed, "weights"))
    network = build_network(settings, len(subset.class_names), split.channels)
    identity = canonical_json({"spec": job.spec, "code": job.code, "draw": subset.digest})
    checkpoint = Checkpoint(job.output / "resume", identity, job.checkpoint_every)
    history = train(
        network,
        build_loss(settings.loss, subset.class_counts),
        split.batches,
        split.labels,
        settings,
        pixels=split.pixels,
        classes=len(subset.class_names),
        seed=seed,
        device=job.device,
        checkpoint=checkpoint,
        description=f"{settings.network} {settings.loss.name}, seed {seed}",
    )
    save_weights(network, job.output / "model.safetensors")
    _write_history(history, job.output / "history.csv")
    checkpoint.clear()
    last = history[-1]
    seconds = sum(record.seconds for record in history)
    say(
        f"trained {settings.network} with {settings.loss.name} on {describe(job.device)}: "
        f"{len(history)} epochs in {seconds:.1f} s, loss {last.loss:.4f}, "
        f"training accuracy {last.accuracy:.1%}"
    )
    return {
        "precision": str(precision(settings.precision, job.device)).removeprefix("torch."),
        "images_on_device": split.batches.resident,
        "images_per_second": round(len(history) * len(split.labels) / max(seconds, 1e-9), 1),
    }


def _write_history(history: list[Epoch], path: Path) -> None:
    write_text_atomic(path, pd.DataFrame(history).to_csv(index=False))
