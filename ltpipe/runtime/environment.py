"""What jobs find around them: the program, the data, the device. Imports no torch."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from ltpipe.runtime.parents import VARIABLE as RUN
from ltpipe.runtime.parents import name_of_run


def prepare_jobs(data_root: str | None, device: str) -> None:
    """Set the environment that Snakemake's jobs inherit.

    They find the `ltpipe` of the Python that runs Snakemake, the experiment's data root, its
    device unless LTPIPE_DEVICE already names one, and the process with which they end.
    """
    os.environ[RUN] = name_of_run()
    programs = str(Path(sys.executable).parent)
    os.environ["PATH"] = os.pathsep.join([programs, os.environ.get("PATH", "")])
    if data_root:
        os.environ["LTPIPE_DATA"] = data_root
    os.environ.setdefault("LTPIPE_DEVICE", device)
