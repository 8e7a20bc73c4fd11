"""Where data sets lie, and how they come there."""

from __future__ import annotations

import os
from pathlib import Path

from ltpipe.utils.errors import InputError

# The checkout that this package is in: the Snakefile, config/, profiles/.
CHECKOUT = Path(__file__).resolve().parents[2]
# Where downloads go while no folder of data sets is set.
DEFAULT_ROOT = Path("data/raw")
FETCH = "`ltpipe fetch EXPERIMENT.yaml` downloads it where there is a network"


def named_root(configured: str | None) -> Path | None:
    """Return the folder of the data sets: the setting, else $LTPIPE_DATA, else data/raw if there.

    A folder that is named need not be there: what is cached of its data may be enough.
    """
    for value in (configured, os.environ.get("LTPIPE_DATA")):
        if value:
            return Path(value).expanduser()
    return DEFAULT_ROOT if DEFAULT_ROOT.is_dir() else None


def data_root(configured: str | None) -> Path | None:
    """Return the folder of the data sets, as `named_root`.

    Raises:
        InputError: it does not exist.
    """
    root = named_root(configured)
    if root is not None and not root.is_dir():
        origin = "data.root" if configured else "LTPIPE_DATA"
        raise InputError(f"{origin} names {root}, which is not a folder")
    return root


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
