"""Start the workflow on an experiment file from any folder."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from ltpipe.utils.errors import InputError
from ltpipe.utils.paths import CHECKOUT


def start_workflow(experiment: Path, cores: int | None, more: Sequence[str] = ()) -> int:
    """Run Snakemake on `experiment` with results in the working folder; return its status.

    Args:
        cores: how many CPU cores; None takes those that this process may use.
        more: further options and targets, as Snakemake takes them.

    Raises:
        InputError: there is no such file, or this package came without its Snakefile.
    """
    if not experiment.is_file():
        raise InputError(f"{experiment}: no such experiment file; `ltpipe init` writes one")
    snakefile = Path("Snakefile") if Path("Snakefile").is_file() else CHECKOUT / "Snakefile"
    if not snakefile.is_file():
        raise InputError(
            f"{snakefile} does not exist: ltpipe runs from a checkout of its repository, "
            "installed by `make demo` or `pip install -e .`"
        )
    command = [sys.executable, "-m", "snakemake", "-s", str(snakefile)]
    command += ["--cores", str(cores or "all")]
    # Options that take several values would take targets for theirs.
    command += [*more, "--configfile", str(experiment)]
    return subprocess.run(command).returncode
