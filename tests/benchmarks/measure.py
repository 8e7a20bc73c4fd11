"""What every measurement shares: a line of the table, its goal, rounds in turn, the machine."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import gc
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from ltpipe import __version__
from ltpipe.training.devices import units

CPU = torch.device("cpu")
THREADS = min(2, torch.get_num_threads())
REPOSITORY = Path(__file__).resolve().parents[2]

# Set for this process and those that it starts, it makes every clock here count CPU time.
CLOCK = "LTPIPE_BENCHMARK_CLOCK"
# What each row's ratio has to reach: all goals on a CPU are here.
GOALS: dict[str, float] = {
    "crop and flip": 6.0,
    "stage one, ResNet-32": 2.2,
    "stage one, compiled": 2.7,
    "embedding, ResNet-32": 3.0,
    "FFN sweep, 11 models": 10.0,
    "large stage two, equal recipe": 3.0,
    "DLSA filter step": 15.0,
    "ECVL phase II, small-resnet": 50.0,
    "ECVL phase II, RN50": 50.0,
    "short job, SGD": 1.3,
    "HDF5 write, synced": 0.6,
}
# Those of processors without AMX, where they differ; None where nothing is promised.
GOALS_WITHOUT_AMX: dict[str, float | None] = {
    "stage one, ResNet-32": 1.6,
    "stage one, compiled": None,
    "DLSA filter step": 10.0,
    "HDF5 write, synced": 0.7,
}


@dataclasses.dataclass
class Result:
    """One line of the table.

    `product` and `peer` are rates, more is better, unless the unit is one of seconds. Where the
    machine sets a ceiling, `ceiling` names it and `work` says how much of it one item takes:
    floating-point operations or bytes for each of the unit's items.
    """

    name: str
    unit: str
    product: float
    peer: float | None = None
    remark: str = ""
    ceiling: str | None = None
    work: float = 0.0

    @property
    def ratio(self) -> float | None:
        """How many times better the product is than its peer; None without one."""
        if self.peer is None:
            return None
        if self.unit.split("/")[0] == "s":
            return self.peer / self.product
        return self.product / self.peer

    @property
    def goal(self) -> float | None:
        """What the ratio has to reach; None where nothing is promised."""
        goals = GOALS if units() == "amx" else {**GOALS, **GOALS_WITHOUT_AMX}
        return goals.get(self.name)


@dataclasses.dataclass(frozen=True)
class Run:
    """How much is measured, and what `ceilings.measure` found of the machine."""

    quick: bool
    full: bool
    limits: dict[str, float]

    @property
    def extent(self) -> str:
        """What sizes are measured: quick, default or full."""
        return "quick" if self.quick else "full" if self.full else "default"

    def share(self, result: Result) -> float | None:
        """Return the part of its ceiling that a row makes use of; None where none applies."""
        if result.ceiling is None:
            return None
        return result.product * result.work / self.limits[result.ceiling]


def count_cpu_time() -> None:
    """Let every clock count this process's CPU time, and one thread do all work."""
    os.environ[CLOCK] = "cpu"
    time.perf_counter = time.process_time
    torch.set_num_threads(1)


if os.environ.get(CLOCK) == "cpu":
    count_cpu_time()


def alternate(
    product: Callable[[], float], peer: Callable[[], float], rounds: int
) -> tuple[float, float]:
    """Return the least seconds of each, measured in turn."""
    ours, theirs = [], []
    for _ in range(rounds):
        ours.append(product())
        theirs.append(peer())
    return min(ours), min(theirs)


def seconds_of(work: Callable[[], Any]) -> float:
    """Return how long a call takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Small operations gain nothing from a second thread, on either side."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class PeakMemory:
    """The peak memory of a part of this process beside what was there before, in MB.

    Linux alone keeps the peak and lets it be set back; elsewhere `megabytes` is NaN.
    """

    megabytes = float("nan")

    def __enter__(self) -> PeakMemory:
        gc.collect()
        with contextlib.suppress(OSError, AttributeError):
            # What was freed before is given back, or it would be used again and not be seen.
            ctypes.CDLL(None).malloc_trim(0)
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
        self.before = status_megabytes("VmRSS")
        return self

    def __exit__(self, *exception: object) -> None:
        self.megabytes = status_megabytes("VmHWM") - self.before


def status_megabytes(field: str) -> float:
    """Return an entry of this process's status, NaN where the system keeps none.

    The peak of `resource.getrusage` will not do: a child process starts from its parent's.
    """
    status = Path("/proc/self/status")
    if not status.is_file():
        return float("nan")
    lines = status.read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{field}:"))


def in_own_process(script: str, *arguments: str) -> str:
    """Run one of these scripts on this checkout and return what it prints."""
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name(script)), *arguments],
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return done.stdout


def environment() -> dict[str, str]:
    """Return the environment in which a child process finds this checkout's package."""
    return {**os.environ, "PYTHONPATH": str(REPOSITORY)}


def machine() -> str:
    """Return processor, cores and versions in one line."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = info.read_text().splitlines()
        model = next((line.split(": ")[1] for line in lines if "model name" in line), model)
    return (
        f"{model}, units for bfloat16: {units()}, {os.cpu_count()} cores, "
        f"{torch.get_num_threads()} threads, "
        f"Python {platform.python_version()}, torch {torch.__version__}"
    )


def version() -> str:
    """Return the package's version, and the commit where this is a checkout; + marks changes."""
    found = []
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        for command in ("rev-parse --short=10 HEAD", "status --porcelain --untracked-files=no"):
            done = subprocess.run(
                ["git", *command.split()],
                cwd=REPOSITORY,
                capture_output=True,
                text=True,
                check=True,
            )
            found.append(done.stdout.strip())
    if len(found) < 2:
        return __version__
    return f"{__version__} {found[0]}{'+' if found[1] else ''}"
