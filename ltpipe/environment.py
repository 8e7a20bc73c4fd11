"""What jobs find around them: the program, the data, the device. Imports no torch."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from ltpipe import preload


def prepare_jobs(data_root: str | None, device: str) -> None:
    """Set the environment that Snakemake's jobs inherit.

    They find the `ltpipe` of the Python that runs Snakemake, the experiment's data root, and its
    device unless LTPIPE_DEVICE already names one.
    """
    programs = str(Path(sys.executable).parent)
    os.environ["PATH"] = os.pathsep.join([programs, os.environ.get("PATH", "")])
    if data_root:
        os.environ["LTPIPE_DATA"] = data_root
    os.environ.setdefault("LTPIPE_DEVICE", device)


def preload_jobs() -> None:
    """Start the process that short jobs are forked from; jobs with a GPU do without."""
    if not gpu_count():
        preload.start()


def outside_file(name: str) -> str:
    """Return where jobs will find a user's file: under the data root, else as it is named."""
    inside = Path(os.environ.get("LTPIPE_DATA", ""), name)
    return str(inside) if inside.exists() else name


def gpu_count() -> int:
    """Return how many CUDA devices jobs on this machine may use; 0 where LTPIPE_DEVICE is cpu."""
    if os.environ.get("LTPIPE_DEVICE") == "cpu":
        return 0
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([name for name in visible.split(",") if name.strip() not in ("", "-1")])
    program = shutil.which("nvidia-smi")
    if program is None:
        return 0
    try:
        listed = subprocess.run([program, "-L"], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return 0
    if listed.returncode:
        return 0
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines())
