"""Which data sets and published weights are on this machine, at a glance: nothing is read whole.

This is for planning: it imports no torch and touches no network. Whether files are whole and the
right ones is for the jobs to find out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ltpipe.config.backbones import backbone_settings
from ltpipe.config.experiment import Head, read_catalogue
from ltpipe.plan.missing import Absent
from ltpipe.utils.errors import InputError
from ltpipe.utils.paths import data_root


def judge(head: Head) -> Absent:
    """Return what says why a data set or a backbone's weights are not there, by its settings.

    Raises:
        InputError: the data root that the file or LTPIPE_DATA names is no folder.
    """
    root = data_root(head.data.root)

    def absent(settings: Any) -> str | None:
        try:
            require(settings, root)
        except InputError as error:
            return str(error)
        return None

    return absent


def require(settings: Any, root: Path | None) -> None:
    """Raise InputError, saying what to put where, if files that `settings` name are not there."""
    next(iter(settings.files(root)), None)


def pretrained_at_hand(catalogue: Path) -> list[str]:
    """Return the catalogue's pretrained networks whose weights are here, in its order: best first.

    Args:
        catalogue: the folder with backbones/.

    Raises:
        InputError: the catalogue can't be read.
    """
    found = []
    for name, values in read_catalogue(catalogue)["backbones"].items():
        if values.get("system") == "pretrained":
            settings = backbone_settings(values)
            try:
                require(settings, None)
            except InputError:
                continue
            found.append(name)
    return found
