"""Train one backbone end to end on the long-tailed images."""

from __future__ import annotations

from typing import Any

from ltpipe.artifacts.job import Job
from ltpipe.losses.building import build_loss
from ltpipe.stage1.job import Images, open_training, train_steps
from ltpipe.training.engine import Steps, SupervisedTask, drain, why_not_captured
from ltpipe.training.turns import take_turns
from ltpipe.utils.progress import say


def run(job: Job) -> dict[str, Any]:
    """Train the backbone of `job.spec` and write model.safetensors and history.csv.

    `job.spec` has `dataset`, `backbone` and `seed`; `job.inputs["data"]` is the folder with
    subset.h5. While the job runs, its resume/ folder holds a checkpoint, from which a killed run
    goes on if spec, samples and code are still the same.
    """
    if not job.cuda_graphs:
        return drain(steps(job))
    # A graph is recorded best from a stream that is not the default one.
    ended: list[Any] = []
    take_turns([steps(job)], job.device, lambda place, result: ended.append(result))
    if isinstance(ended[0], Exception):
        raise ended[0]
    return ended[0]


def steps(job: Job, images: Images | None = None) -> Steps[dict[str, Any]]:
    """Do what `run` does, pausing after each batch; `images` are the job's, if already opened."""
    training = open_training(job, images)
    settings = training.settings
    unfit = why_not_captured(settings, job.device) if job.cuda_graphs else ""
    if unfit:
        say(f"trained without CUDA graphs: {unfit}")
    task = SupervisedTask(
        training.network,
        build_loss(settings.loss, training.data.class_counts),
        training.data,
        settings,
        job.spec["seed"],
        job.device,
        captured=job.cuda_graphs and not unfit,
    )
    return (yield from train_steps(job, training, task))
