"""Where data sets lie, and how they come there."""

from __future__ import annotations

import os
from pathlib import Path

from ltpipe.utils.errors import InputError

# Where downloads go while no folder of data sets is set.
DEFAULT_ROOT = Path("data/raw")
FETCH = "`ltpipe fetch EXPERIMENT.yaml` downloads it where there is a network"


def data_root(configured: str | None) -> Path | None:
    """Return the folder of the data sets: the setting, else $LTPIPE_DATA, else data/raw if there.

    Raises:
        InputError: the folder that the setting or the variable names does not exist.
    """
    for origin, value in (
        ("data.root", configured),
        ("LTPIPE_DATA", os.environ.get("LTPIPE_DATA")),
    ):
        if value:
            folder = Path(value).expanduser()
            if not folder.is_dir():
                raise InputError(f"{origin} names {value}, which is not a folder")
            return folder
    return DEFAULT_ROOT if DEFAULT_ROOT.is_dir() else None


def locate(path: str, root: Path | None) -> Path:
    """Return `path` as it stands if absolute, else under `root`, or else the working folder.

    Raises:
        InputError: nothing is there.
    """
    given = Path(path).expanduser()
    places = [given] if given.is_absolute() or root is None else [root / given, given]
    for place in places:
        if place.exists():
            return place
    raise InputError(
        f"{path} does not exist: looked for {' and '.join(str(place) for place in places)} "
        "(data.root or LTPIPE_DATA sets the folder of relative paths)"
    )
