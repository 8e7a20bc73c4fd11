"""What this machine has, found without torch."""

from __future__ import annotations

import os
import shutil
import subprocess


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
