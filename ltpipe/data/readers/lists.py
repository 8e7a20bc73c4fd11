"""Images named by list files, as ImageNet-LT, Places-LT and iNaturalist 2018 are published."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np

from ltpipe.config.datasets import OwnImages
from ltpipe.config.registry import reader
from ltpipe.data.images import stored_images
from ltpipe.data.sources import Part, Source, check_classes
from ltpipe.utils.errors import InputError
from ltpipe.utils.outside import read_bytes
from ltpipe.utils.paths import locate

# Of more digits is no number of a class.
_LABEL = re.compile(r"-?[0-9]{1,9}")


@reader("list", paper="Liu et al., CVPR 2019; Van Horn et al., CVPR 2018")
class ListDataset(OwnImages):
    """Images named by list files: ImageNet-LT, Places-LT, iNaturalist 2018.

    A list file has `relative/path label` on each line, the path being relative to `path`. Line c
    + 1 of the file `class_names` is the name of class c; without it classes are called by number.
    Without `test_list` a share of each class is set apart for the test.
    """

    source: Literal["list"]
    path: str
    train_list: str
    val_list: str | None = None
    test_list: str | None = None
    class_names: str | None = None

    def locations(self) -> frozenset[str]:
        return frozenset({"path", "train_list", "val_list", "test_list", "class_names"})

    def files(self, root: Path | None) -> Iterator[tuple[str, str]]:
        folder = locate(self.path, root)
        named = {part: locate(file, root) for part, file in self._named().items()}
        yield from [(part, str(path)) for part, path in named.items()]
        listed: dict[str, None] = {}
        for part, path in named.items():
            if part != "class_names":
                listed.update(dict.fromkeys(read_list(path)[0]))
        for file in listed:
            yield f"images/{file}", f"{folder}/{file}"

    def read(self, root: Path | None) -> Source:
        folder = locate(self.path, root)
        named = {part: locate(file, root) for part, file in self._named().items()}
        names = _class_names(named["class_names"]) if "class_names" in named else None

        def part(path: Path, num_classes: int | None) -> Part:
            files, labels = read_list(path, num_classes)
            if not (folder / files[0]).is_file():
                raise InputError(
                    f"{folder / files[0]}, the first image of {path}, does not exist: path must "
                    "name the folder that the listed paths are relative to"
                )
            images = stored_images([folder / file for file in files], self.input)
            return Part(images, labels, files)

        train = part(named["train_list"], None if names is None else len(names))
        if names is None:
            check_classes(train.labels)
            names = [str(label) for label in range(int(train.labels.max()) + 1)]
        return Source(
            class_names=names,
            train=train,
            val=part(named["val_list"], len(names)) if "val_list" in named else None,
            test=part(named["test_list"], len(names)) if "test_list" in named else None,
        )

    def _named(self) -> dict[str, str]:
        parts = ("train_list", "val_list", "test_list", "class_names")
        files = {part: getattr(self, part) for part in parts}
        return {part: file for part, file in files.items() if file is not None}


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
        if not file or not _LABEL.fullmatch(text):
            shown = line if len(line) <= 200 else f"{line[:200]}..."
            raise InputError(f"{path}:{number}: {shown!r} is not 'relative/path label'")
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
        return read_bytes(path).decode("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} can't be read as text: {error}") from error
