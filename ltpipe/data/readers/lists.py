"""Images named by list files, as ImageNet-LT, Places-LT and iNaturalist 2018 are published."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ltpipe.config.registry import reader
from ltpipe.data.images import FileImages
from ltpipe.data.sources import Part, Source, check_options, image_size, locate
from ltpipe.utils.errors import InputError

_OPTIONS = (
    "train_list",
    "val_list",
    "test_list",
    "images",
    "size",
    "channels",
    "interpolation",
    "fit",
    "class_names",
)


@reader("list", paper="Liu et al., CVPR 2019; Van Horn et al., CVPR 2018")
def read_lists(root: Path | None, options: Mapping[str, Any]) -> Source:
    """Open the images that list files of ``relative/path label`` lines name.

    Args:
        root: folder that relative paths of the options are under.
        options: ``train_list``, ``val_list``, ``test_list`` (list files; only the first is
            needed), ``images`` (folder that the listed paths are relative to; `root` unless
            given), ``size`` (stored size), ``channels`` (3), ``interpolation`` (bilinear),
            ``fit`` (cover), ``class_names`` (a file with the name of class c on line c + 1;
            without it classes are called by their number, and there are as many as the training
            list's labels say).

    Raises:
        InputError: a missing file, or a malformed line or label out of range, by file and line.
    """
    check_options("list", options, _OPTIONS)
    if "train_list" not in options:
        raise InputError("data source 'list' needs the option train_list: lines of 'path label'")
    size = image_size("list", options)
    folder = locate(options["images"], root) if "images" in options else (root or Path())
    names = _class_names(locate(options["class_names"], root)) if "class_names" in options else None

    def part(option: str, num_classes: int | None) -> Part:
        path = locate(options[option], root)
        files, labels = read_list(path, num_classes)
        if not (folder / files[0]).is_file():
            raise InputError(
                f"{folder / files[0]}, the first image of {path}, does not exist: the option "
                "images must name the folder that the listed paths are relative to"
            )
        images = FileImages(
            [folder / file for file in files],
            size,
            options.get("channels", 3),
            options.get("interpolation", "bilinear"),
            options.get("fit", "cover"),
        )
        return Part(images, labels)

    train = part("train_list", None if names is None else len(names))
    if names is None:
        names = [str(label) for label in range(int(train.labels.max()) + 1)]
    return Source(
        class_names=names,
        train=train,
        val=part("val_list", len(names)) if "val_list" in options else None,
        test=part("test_list", len(names)) if "test_list" in options else None,
    )


def read_list(path: Path, num_classes: int | None = None) -> tuple[list[str], np.ndarray]:
    """Read a file of ``relative/path label`` lines; a path may hold spaces.

    Args:
        path: the list file.
        num_classes: labels must be smaller than this, if given.

    Returns:
        The paths as written, and the (N,) int64 labels.

    Raises:
        InputError: an empty file, or a malformed line or label out of range, by file and line.
    """
    files, labels = [], []
    for number, line in enumerate(_lines(path), start=1):
        file, _, text = line.rstrip().rpartition(" ")
        if not file or not text.removeprefix("-").isdecimal():
            raise InputError(f"{path}:{number}: {line!r} is not 'relative/path label'")
        label = int(text)
        if label < 0 or (num_classes is not None and label >= num_classes):
            bound = "" if num_classes is None else f" to {num_classes - 1}"
            raise InputError(f"{path}:{number}: label {label}; labels count from 0{bound}")
        files.append(file.rstrip())
        labels.append(label)
    if not files:
        raise InputError(f"{path} is empty: lines of 'relative/path label' are needed")
    return files, np.array(labels, dtype=np.int64)


def _class_names(path: Path) -> list[str]:
    names = [line.strip() for line in _lines(path)]
    for number, name in enumerate(names, start=1):
        if not name:
            raise InputError(f"{path}:{number}: a class has no name")
    return names


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} can't be read as text: {error}") from error
