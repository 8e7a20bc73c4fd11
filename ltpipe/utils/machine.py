"""What this machine has, found without torch."""

from __future__ import annotations

import os
import shutil
import subprocess


def gpu_count() -> int:
    """Return how many CUDA devices jobs on this machine may use; 0 where LTPIPE_DEVICE is cpu."""
    return 0 if os.environ.get("LTPIPE_DEVICE") == "cpu" else len(_gpus())


def mig_devices() -> list[str]:
    """Return the names of the MIG instances that jobs may use; none where GPUs are undivided.

    Asks nothing of CUDA, which shows a process only the first instance of those it is told of.
    """
    return [name for name in _gpus() if name.startswith("MIG-")]


def _gpus() -> list[str]:
    """Return what CUDA_VISIBLE_DEVICES names, or each GPU of this machine, instances by their own.

    https://docs.nvidia.com/datacenter/tesla/mig-user-guide: `nvidia-smi -L` lists a GPU's
    instances below it.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        names = [name.strip() for name in visible.split(",")]
        return [name for name in names if name not in ("", "-1")]
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    try:
        listed = subprocess.run([program, "-L"], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return []
    found: list[str] = []
    gpu = ""
    for line in listed.stdout.splitlines() if listed.returncode == 0 else ():
        uuid = line.rpartition("(UUID: ")[2].rstrip(") ")
        if line.lstrip().startswith("MIG "):
            # The GPU above is divided: only its instances compute.
            found = [name for name in found if name != gpu]
            found.append(uuid)
        elif line.startswith("GPU "):
            gpu = uuid
            found.append(gpu)
    return found
