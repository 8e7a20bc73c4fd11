"""Download the data sets and weights of an experiment file ahead of its run."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from ltpipe.config.backbones import Pretrained, VisionLanguage
from ltpipe.plan.availability import require
from ltpipe.plan.workload import load_workload
from ltpipe.utils.errors import InputError
from ltpipe.utils.paths import data_root


def fetch(path: Path, catalogue: Path | None = None) -> list[str]:
    """Download what an experiment file needs, lacks and may download; return why the rest lacks.

    Data sets go to the data root, or to data/raw where none is set; weights to the caches of the
    libraries that publish them.

    Raises:
        InputError: the file is no experiment, or its data root is no folder.
    """
    load = load_workload(path, catalogue)
    root = data_root(load.head.data.root)
    wanted: dict[str, Any] = {}
    for plan in load.plans:
        for section, name in plan.experiment.parts_in_use():
            settings = getattr(plan.experiment, section)[name].settings
            wanted.setdefault(_key(settings), settings)
    lacking = {why: None for settings in wanted.values() if (why := _fetch(settings, root))}
    return list(lacking)


def _key(settings: Any) -> str:
    parts = ("source", "path", "file", "train_list", "network", "weights")
    return repr([getattr(settings, part, None) for part in parts])


def _fetch(settings: Any, root: Path | None) -> str | None:
    try:
        if not hasattr(settings, "source"):
            _fetch_weights(settings)
        else:
            settings.fetch(root)
    except InputError as error:
        return str(error)
    return None


def _fetch_weights(settings: Any) -> None:
    """Build a network whose weights are not there, which downloads them."""
    if settings.weights is None:
        return
    try:
        require(settings, None)
    except InputError:
        if isinstance(settings, Pretrained):
            importlib.import_module("ltpipe.models.pretrained").download(settings)
            return
        towers = isinstance(settings, VisionLanguage)
        module = "ltpipe.models.vision_language" if towers else "ltpipe.models.building"
        builder = importlib.import_module(module)
        if towers:
            builder.build_towers(settings)
        else:
            builder.build_network(settings, 2, 3)
