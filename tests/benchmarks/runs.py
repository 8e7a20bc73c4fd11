"""Whole runs of Snakemake: what each short job costs beyond its own work, and the default run."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from measure import CPU, REPOSITORY, Result, Run, environment, one_thread, seconds_of

from ltpipe.artifacts.job import Job
from ltpipe.stage2.simple import classifier

DEMO = REPOSITORY / "config/config.yaml"


def short_jobs(jobs: int, preload: bool) -> dict[str, Any]:
    """Return an experiment of one tiny backbone and that many classifiers on its features."""
    return {
        "experiment": "overhead",
        "seeds": [0],
        "preload": preload,
        "datasets": {"digits-lt": None},
        "backbones": {"ce": {"use": "resnet8-short", "epochs": 1}},
        "methods": {
            f"rate-{place}": {
                "use": "crt",
                "backbones": {"features": "ce"},
                "views": "plain",
                "epochs": 1,
                "learning_rate": 0.1 / (place + 1),
            }
            for place in range(jobs)
        },
    }


def snakemake(folder: Path, experiment: Path, *arguments: str, cores: int = 1) -> float:
    """Run Snakemake in a folder on this checkout's sources and return the seconds.

    Raises:
        RuntimeError: it fails; the text is what it printed last.
    """
    command = [sys.executable, "-m", "snakemake", "-s", str(REPOSITORY / "Snakefile"), *arguments]
    command += ["--cores", str(cores), "--configfile", str(experiment)]
    settings = {**environment(), "CUDA_VISIBLE_DEVICES": "", "LTPIPE_DEVICE": "cpu"}

    def call() -> None:
        done = subprocess.run(command, cwd=folder, env=settings, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(done.stdout[-2000:] + done.stderr[-2000:])

    return seconds_of(call)


def own_work(folder: Path) -> float:
    """Return the seconds that one of the classifiers takes in a process that is running already."""
    manifest = next(folder.glob("results/stage2/**/manifest.json"))
    features = next(folder.glob("results/features/**/train.h5")).parent
    spec = json.loads(manifest.read_text())["spec"]

    def call() -> None:
        with tempfile.TemporaryDirectory() as output:
            classifier.run(Job(spec, {"features.features": features}, Path(output), CPU))

    with one_thread():
        return min(seconds_of(call) for _ in range(3))


def overhead(run: Run) -> Iterator[Result]:
    """Time N jobs, less a run that has nothing left to do, less the jobs' own work."""
    jobs = 2 if run.quick else 30
    beyond = {}
    with tempfile.TemporaryDirectory() as name:
        for preload in (False, True):
            folder = Path(name) / str(preload)
            folder.mkdir()
            few, many = folder / "few.yaml", folder / "many.yaml"
            few.write_text(yaml.safe_dump(short_jobs(1, preload)))
            many.write_text(yaml.safe_dump(short_jobs(1 + jobs, preload)))
            snakemake(folder, few, "stage2")
            idle = snakemake(folder, few, "stage2")
            busy = snakemake(folder, many, "stage2")
            work = own_work(folder)
            beyond[preload] = (busy - idle) / jobs - work
    yield Result(
        "Snakemake, a short job",
        "s/job",
        beyond[True],
        beyond[False],
        f"beyond its own {work:.2f} s, {jobs} jobs, 1 core; preload: true, its server's start "
        "shared by all; peer: plain",
    )


def demo(run: Run) -> Iterator[Result]:
    """The default experiment from images to report, in a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        seconds = snakemake(Path(folder), DEMO, cores=2)
    yield Result("default experiment, end to end", "s", seconds, None, "2 cores, nothing cached")
