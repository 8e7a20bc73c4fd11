"""The record of runs that did not converge: a file beside an artifact, or no such file.

Such a run is a finished one. Its reason follows it from stage one through the feature store to the
tables, where it stands as a dash and never as a number.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from ltpipe.artifacts.reading import checked_file_if_any
from ltpipe.utils.errors import InputError
from ltpipe.utils.io import write_json_atomic

FILE = "diverged.json"


def write_divergence(folder: Path, reasons: Mapping[int, str]) -> None:
    """Say which points of a sweep (0 without one) did not converge, and why; {} leaves no file."""
    if reasons:
        write_json_atomic(folder / FILE, {str(point): text for point, text in reasons.items()})
    else:
        (folder / FILE).unlink(missing_ok=True)


def read_divergence(folder: Path) -> dict[int, str]:
    """Return the reasons by point; {} where everything converged.

    Raises:
        InputError: the file is missing, though the manifest names it, or damaged.
    """
    path = checked_file_if_any(folder, FILE)
    if path is None:
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return {int(point): str(text) for point, text in values.items()}
    except (ValueError, AttributeError):
        raise InputError(f"{path}: damaged; delete the folder and run again") from None
