"""Any folder of images, one folder a class."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from ltpipe.config.datasets import InputSettings, OwnImages
from ltpipe.config.registry import reader
from ltpipe.data.images import stored_images
from ltpipe.data.sources import Part, Source
from ltpipe.plan.fingerprints import files_below
from ltpipe.utils.errors import InputError, nearest
from ltpipe.utils.io import printable
from ltpipe.utils.paths import locate

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff", ".gif"})
_SPLITS = ("train", "val", "test")


@reader("folder")
class FolderDataset(OwnImages):
    """Images in train/val/test folders of class folders, or one folder of class folders.

    `class_names` gives folders other names, such as words for WordNet's numbers: in tables, and in
    prompts.

    Where there is no test folder, a share of each class is set apart.
    """

    source: Literal["folder"]
    path: str
    class_names: dict[str, str] = Field(default={})

    def locations(self) -> frozenset[str]:
        return frozenset({"path"})

    def files(self, root: Path | None) -> Iterator[tuple[str, str]]:
        path = locate(self.path, root)
        folders = _split_folders(path)
        if folders == {"train": path}:
            folders = {"": path}
        for split, folder in folders.items():
            for name, file in files_below(folder, SUFFIXES):
                # As the reader does: hidden images and hidden class folders do not count.
                if not name.startswith(".") and "/." not in name[name.rfind("/") :]:
                    yield f"{split}/{name}", file

    def read(self, root: Path | None) -> Source:
        source = read_folder(locate(self.path, root), self.input)
        if unknown := sorted(self.class_names.keys() - set(source.class_names)):
            raise InputError(
                f"class_names: {self.path} has no class folder {unknown[0]!r}"
                f"{nearest(unknown[0], source.class_names)}"
            )
        names = [self.class_names.get(name, name) for name in source.class_names]
        if len(set(names)) < len(names):
            raise InputError("class_names: two class folders would have one name")
        return replace(source, class_names=names)


def read_folder(path: Path, stored: InputSettings) -> Source:
    """Open PATH/{train,val,test}/CLASS/**/image or PATH/CLASS/**/image.

    Classes are sorted by name.

    Raises:
        InputError: a missing folder, a class without images, or different classes in two splits.
    """
    folders = _split_folders(path)
    found = {split: _scan(folder) for split, folder in folders.items()}
    names = list(found["train"])
    for split, classes in found.items():
        if different := sorted(set(classes) ^ set(names)):
            raise InputError(
                f"{folders[split]} and {folders['train']} differ in their classes: "
                f"{', '.join(different[:5])}; each needs the same class folders"
            )
    parts = {}
    for split, classes in found.items():
        files = [file for inside in classes.values() for file in inside]
        labels = np.repeat(np.arange(len(names)), [len(inside) for inside in classes.values()])
        paths = [file.relative_to(path).as_posix() for file in files]
        parts[split] = Part(stored_images(files, stored), labels.astype(np.int64), paths)
    # A folder's name may be of any bytes.
    shown = [printable(name) for name in names]
    return Source(shown, parts["train"], parts.get("val"), parts.get("test"))


def _split_folders(path: Path) -> dict[str, Path]:
    """Return the folder of each split; of a folder of classes, itself as that of training."""
    if not path.is_dir():
        raise InputError(f"{path} is no folder: name the folder that holds the images")
    folders = {split: path / split for split in _SPLITS if (path / split).is_dir()}
    if folders and "train" not in folders:
        raise InputError(f"{path} has a folder {next(iter(folders))} but no folder train")
    return folders or {"train": path}


def _scan(folder: Path) -> dict[str, list[Path]]:
    """Return the sorted image files of each class folder, by sorted class name."""
    names = sorted(
        entry.name
        for entry in folder.iterdir()
        if entry.is_dir() and not entry.name.startswith(".")
    )
    if len(names) < 2:
        raise InputError(f"{folder} has {len(names)} class folders: at least two are needed")
    classes = {}
    for name in names:
        files = sorted(
            file
            for file in (folder / name).rglob("*")
            if file.suffix.lower() in SUFFIXES and not file.name.startswith(".")
        )
        if not files:
            raise InputError(
                f"class folder {folder / name} has no image ({' '.join(sorted(SUFFIXES))}): "
                "add some or remove the folder"
            )
        classes[name] = files
    return classes
