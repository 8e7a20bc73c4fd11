"""What jobs find around them: the program, the data, the device. Imports no torch."""

from __future__ import annotations

import os
import sys
from pathlib import Path


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
