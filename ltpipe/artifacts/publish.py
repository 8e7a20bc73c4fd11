"""A path for people to an experiment's newest report."""

from __future__ import annotations

import shutil
from pathlib import Path

from ltpipe.plan.stages import LATEST, MANIFEST
from ltpipe.utils.errors import InputError


def publish(report: Path) -> Path:
    """Let results/experiments/NAME/latest lead to `report`, results/experiments/NAME/DIGEST.

    Marks of reports that were published before go first, so that one of them is published again
    when it is asked for again. Returns the path for people.

    Raises:
        InputError: there is no finished report.
    """
    if not (report / MANIFEST).is_file():
        raise InputError(f"{report}: there is no finished report here")
    for mark in (report.parent / "published").glob("*"):
        if mark.name != report.name:
            mark.unlink(missing_ok=True)
    latest = report.parent / LATEST
    if latest.is_dir() and not latest.is_symlink():
        # A copy that followed links, such as scp's.
        shutil.rmtree(latest)
    temporary = latest.with_name(f".{LATEST}.tmp")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(report.name)
    temporary.replace(latest)
    return latest
