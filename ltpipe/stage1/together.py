"""Several backbones trained at once on one GPU, each as it is trained alone.

A small network leaves most of a GPU idle. Here several trainings take turns in one process, a step
each, on CUDA streams of their own, every step a recorded graph (ltpipe.training.capture): the host
starts a step in one call, and the GPU works on all of them side by side. Each training is the lone
one, with its own weights, draws, BatchNorm statistics, schedule, rule, checkpoint and files, so
together or alone the same is computed, and losses, networks and data sets may differ. Stacking the
models into one network, as grouped convolutions, would compute the same to rounding only; on a CPU
it took 1.4 to 4 times as long as lone ResNet-32 of batch 128.

The jobs stay those of the workflow, a process and a folder each. Those that start at about the
same time on a host meet (module gathering), one of them trains all, the others wait and then write
their manifests.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ltpipe.artifacts.job import Job
from ltpipe.artifacts.manifest import PACKAGE, code_identity
from ltpipe.config.backbones import backbone_settings
from ltpipe.config.base import canonical_json, digest
from ltpipe.plan.layout import code_entries
from ltpipe.runtime.gathering import Entry, Gathering, Values
from ltpipe.stage1 import supervised
from ltpipe.stage1.job import Images, open_images
from ltpipe.training.devices import CPU, describe, lease
from ltpipe.training.distributed import is_launched
from ltpipe.training.engine import why_not_captured
from ltpipe.training.turns import take_turns
from ltpipe.utils.errors import InputError
from ltpipe.utils.progress import say

# Jobs that Snakemake starts at once are seconds apart when they have imported torch.
PATIENCE = 5.0

Result = dict[str, Any] | Exception


def why_alone(spec: Mapping[str, Any], wanted: str) -> str:
    """Return why the backbone of `spec` is trained alone on device `wanted`, or nothing."""
    settings = backbone_settings(spec["backbone"])
    if settings.system != "supervised":
        return f"system {settings.system} has training steps of its own"
    if is_launched():
        return "several processes train it"
    if wanted == "cpu" or not torch.cuda.is_available():
        return "one model keeps a CPU busy"
    return why_not_captured(settings, torch.device("cuda"))


def train_together(jobs: Sequence[Job], finish: Callable[[int, Result], None]) -> None:
    """Train every job's backbone, taking turns after each step.

    Args:
        jobs: on one device; the images of a data set are held once.
        finish: is told of each job, by its place, as soon as it is done: what its manifest says, or
            what went wrong with it. The others go on.
    """
    opened: dict[str, Images] = {}
    places, started = [], []
    for place, job in enumerate(jobs):
        try:
            key = canonical_json([job.spec["dataset"], str(job.inputs["data"].resolve())])
            if key not in opened:
                opened[key] = open_images(job)
        except Exception as error:
            finish(place, error)
        else:
            places.append(place)
            started.append(supervised.steps(job, opened[key]))
    take_turns(started, jobs[0].device, lambda place, result: finish(places[place], result))


def take_part(job: Job, wanted: str, at_once: int) -> dict[str, Any]:
    """Have `job` trained with up to ``at_once - 1`` others that are waiting on this host.

    This process trains them all on a leased device, or waits for the one that does.

    Returns:
        What the manifest says of the run.

    Raises:
        InputError: this job's input is bad; the other jobs go on.
        RuntimeError: the process that trained it met another error.
    """
    with Gathering(_folder(wanted), _request(job)) as gathering:
        answer = gathering.wait()
        if answer is not None:
            say(answer["said"])
            if "facts" in answer:
                return answer["facts"]
            raise (InputError if answer["input"] else RuntimeError)(answer["error"])
        with lease(wanted) as device:
            return _lead(gathering, job, device, at_once)


def _lead(gathering: Gathering, job: Job, device: torch.device, at_once: int) -> dict[str, Any]:
    def accepts(request: Values) -> bool:
        # A process runs the code that it has imported, for others too.
        return all(
            code_identity(code_entries(values["spec"])) == values["code"]
            for values in (request, _request(job))
        )

    taken = gathering.take(at_once, PATIENCE, accepts)
    jobs = [replace(_job(values), device=device, cuda_graphs=True) for _, values in taken]
    names = ", ".join(str(values["output"]) for _, values in taken)
    say(f"training {len(jobs)} together on {describe(device)}: {names}")
    own: list[Result] = []

    def finish(place: int, result: Result) -> None:
        entry = taken[place][0]
        if not isinstance(result, Exception):
            result = {"device": describe(device), "together": len(jobs), **result}
        if entry.name == gathering.own.name:
            own.append(result)
        else:
            _reply(entry, result, len(jobs))

    train_together(jobs, finish)
    if isinstance(own[0], Exception):
        raise own[0]
    return own[0]


def _reply(entry: Entry, result: Result, together: int) -> None:
    said = f"trained as one of {together} by process {os.getpid()}, whose log says how it went"
    if isinstance(result, Exception):
        is_input = isinstance(result, InputError)
        text = str(result) if is_input else f"{type(result).__name__}: {result}"
        entry.reply({"said": said, "error": text, "input": is_input})
    else:
        entry.reply({"said": said, "facts": result})


def _request(job: Job) -> Values:
    return {
        "spec": dict(job.spec),
        "inputs": {role: str(path.resolve()) for role, path in job.inputs.items()},
        "output": str(job.output.resolve()),
        "root": None if job.root is None else str(job.root.resolve()),
        "code": job.code,
        "checkpoint_every": job.checkpoint_every,
    }


def _job(request: Values) -> Job:
    return Job(
        spec=request["spec"],
        inputs={role: Path(path) for role, path in request["inputs"].items()},
        output=Path(request["output"]),
        device=CPU,
        root=None if request["root"] is None else Path(request["root"]),
        code=request["code"],
        checkpoint_every=request["checkpoint_every"],
    )


def _folder(wanted: str) -> Path:
    """Return where jobs meet that run the same code by the same Python on the same devices."""
    meets = digest(
        {
            "package": str(PACKAGE),
            "python": sys.executable,
            "code": code_identity([__name__]),
            "device": wanted,
            "visible": os.environ.get("CUDA_VISIBLE_DEVICES"),
        }
    )
    return Path(tempfile.gettempdir()) / f"ltpipe-together-{os.getuid()}" / meets
