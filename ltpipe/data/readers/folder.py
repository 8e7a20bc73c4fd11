"""Any folder of images, one folder a class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ltpipe.config.registry import reader
from ltpipe.data.images import FileImages
from ltpipe.data.longtail import split_validation
from ltpipe.data.sources import Part, Source, check_options, image_size, locate
from ltpipe.utils.errors import InputError

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm"})
_SPLITS = ("train", "val", "test")
_OPTIONS = (
    "path",
    "size",
    "channels",
    "interpolation",
    "fit",
    "test_fraction",
    "val_fraction",
    "split_seed",
)
_TEST_FRACTION = 0.2


@reader("folder")
def read_folder(root: Path | None, options: Mapping[str, Any]) -> Source:
    """Open PATH/{train,val,test}/CLASS/**/image or PATH/CLASS/**/image.

    Classes are sorted by name. A split without a folder is taken from the training images,
    class by class: ``test`` by ``test_fraction`` (0.2 unless given), ``val`` by ``val_fraction``
    (none unless given), both by ``split_seed`` (0).

    Args:
        root: folder that a relative ``path`` is under.
        options: ``path``, ``size`` (stored size), ``channels`` (3), ``interpolation``
            (bilinear), ``fit`` (cover), ``test_fraction``, ``val_fraction``, ``split_seed``.

    Raises:
        InputError: a missing folder, a class without images, different classes in two splits, or
            a fraction for a split that has its own folder.
    """
    check_options("folder", options, _OPTIONS)
    if "path" not in options:
        raise InputError("data source 'folder' needs the option path: the folder of the images")
    path = locate(options["path"], root)
    if not path.is_dir():
        raise InputError(f"{path} is no folder: name the folder that holds the images")
    folders = {split: path / split for split in _SPLITS if (path / split).is_dir()}
    if "train" not in folders:
        if folders:
            raise InputError(f"{path} has a folder {next(iter(folders))} but no folder train")
        folders = {"train": path}
    found = {split: _scan(folder) for split, folder in folders.items()}
    names = list(found["train"])
    for split, classes in found.items():
        if different := sorted(set(classes) ^ set(names)):
            raise InputError(
                f"{folders[split]} and {folders['train']} differ in their classes: "
                f"{', '.join(different[:5])}; each needs the same class folders"
            )
    parts = {
        split: (
            [file for files in classes.values() for file in files],
            np.repeat(np.arange(len(names)), [len(files) for files in classes.values()]),
        )
        for split, classes in found.items()
    }
    for split, default in (("test", _TEST_FRACTION), ("val", 0.0)):
        fraction = options.get(f"{split}_fraction")
        if split in parts:
            if fraction:
                raise InputError(f"{folders[split]} exists, so {split}_fraction must not be given")
            continue
        fraction = default if fraction is None else fraction
        if fraction:
            files, labels = parts["train"]
            kept, taken = split_validation(labels, options.get("split_seed", 0), fraction)
            parts["train"] = [files[i] for i in kept], labels[kept]
            parts[split] = [files[i] for i in taken], labels[taken]

    def part(split: str) -> Part | None:
        if split not in parts:
            return None
        files, labels = parts[split]
        return _part(files, labels, options)

    train = _part(*parts["train"], options)
    return Source(class_names=names, train=train, val=part("val"), test=part("test"))


def _part(files: Sequence[Path], labels: np.ndarray, options: Mapping[str, Any]) -> Part:
    images = FileImages(
        files,
        image_size("folder", options),
        options.get("channels", 3),
        options.get("interpolation", "bilinear"),
        options.get("fit", "cover"),
    )
    return Part(images, labels.astype(np.int64))


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
