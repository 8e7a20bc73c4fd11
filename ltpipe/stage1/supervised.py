"""Train one backbone end to end on the long-tailed images."""

from __future__ import annotations

from typing import Any

from ltpipe.artifacts.job import Job
from ltpipe.losses.building import build_loss
from ltpipe.stage1.job import open_training, train_task
from ltpipe.training.engine import SupervisedTask


def run(job: Job) -> dict[str, Any]:
    """Train the backbone of `job.spec` and write model.safetensors and history.csv.

    `job.spec` has `dataset`, `backbone` and `seed`; `job.inputs["data"]` is the folder with
    subset.h5. While the job runs, its resume/ folder holds a checkpoint, from which a killed run
    goes on if spec, samples and code are still the same.
    """
    training = open_training(job)
    loss = build_loss(training.settings.loss, training.data.class_counts)
    task = SupervisedTask(
        training.network, loss, training.data, training.settings, job.seed, job.device
    )
    return train_task(job, training, task)
