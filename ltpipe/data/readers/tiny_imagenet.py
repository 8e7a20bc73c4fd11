"""Tiny-ImageNet-200: 200 classes of 64 x 64 photographs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from ltpipe.config.datasets import ImageDataset, InputSettings
from ltpipe.config.registry import reader
from ltpipe.data.images import stored_images
from ltpipe.data.sources import Part, Source
from ltpipe.plan.fingerprints import files_below
from ltpipe.utils.errors import InputError
from ltpipe.utils.outside import read_bytes
from ltpipe.utils.paths import locate

_SUFFIXES = frozenset({".jpeg", ".jpg", ".png"})


@reader("tiny-imagenet", paper="Le and Yang, 2015")
class TinyImageNetDataset(ImageDataset):
    """Tiny-ImageNet-200 by its standard files; its validation images are the test set."""

    decodes: ClassVar[bool] = True

    source: Literal["tiny-imagenet"]
    path: str = "tiny-imagenet-200"

    def locations(self) -> frozenset[str]:
        return frozenset({"path"})

    def files(self, root: Path | None) -> Iterator[tuple[str, str]]:
        path = locate(self.path, root)
        yield "wnids.txt", str(path / "wnids.txt")
        if (path / "words.txt").exists():
            yield "words.txt", str(path / "words.txt")
        for split, suffixes in (("train", _SUFFIXES), ("val", _SUFFIXES | {".txt"})):
            for name, file in files_below(path / split, suffixes):
                yield f"{split}/{name}", file

    def read(self, root: Path | None) -> Source:
        return read_tiny_imagenet(locate(self.path, root), self.input)


def read_tiny_imagenet(path: Path, stored: InputSettings) -> Source:
    """Open the training images of Tiny-ImageNet, and its validation images to test on.

    The labels of the official test images were never published. Class c is the c-th WordNet id in
    sorted order; within a class, images are in the order of their file names, which is that of an
    image-folder loader. Validation images lie in val/images with val/val_annotations.txt, as
    published, or in class folders below val.

    Raises:
        InputError: a missing file or folder, a class without images, or a damaged line by file
            and line.
    """
    wnids = _wnids(path / "wnids.txt")

    def part(classes: Mapping[str, Sequence[Path]]) -> Part:
        counts = [len(classes[wnid]) for wnid in wnids]
        images = stored_images([file for wnid in wnids for file in classes[wnid]], stored)
        return Part(images, np.repeat(np.arange(len(wnids), dtype=np.int64), counts))

    annotations = path / "val/val_annotations.txt"
    annotated = annotations.exists() or (path / "val/images").is_dir()
    test = _annotated(annotations, wnids) if annotated else _scan(path / "val", wnids)
    return Source(
        class_names=_class_names(path / "words.txt", wnids),
        train=part(_scan(path / "train", wnids)),
        test=part(test),
    )


def _wnids(path: Path) -> list[str]:
    wnids = [line.strip() for line in _lines(path) if line.strip()]
    if repeated := [wnid for wnid, times in Counter(wnids).items() if times > 1]:
        raise InputError(f"{path} names {repeated[0]} twice: put the published file there")
    if len(wnids) < 2:
        raise InputError(f"{path} names {len(wnids)} classes: at least two are needed")
    return sorted(wnids)


def _class_names(path: Path, wnids: Sequence[str]) -> list[str]:
    """Return the first synonym of each class; the id follows where two classes share one."""
    if not path.exists():
        return list(wnids)
    words = {}
    for number, line in enumerate(_lines(path), start=1):
        wnid, tab, synonyms = line.partition("\t")
        name = synonyms.split(",")[0].strip()
        if not tab or not name:
            raise InputError(f"{path}:{number}: {line!r} is not 'id<tab>name, name'")
        words[wnid] = name
    names = [words.get(wnid, wnid) for wnid in wnids]
    shared = {name for name, times in Counter(names).items() if times > 1}
    return [
        f"{name} ({wnid})" if name in shared else name
        for name, wnid in zip(names, wnids, strict=True)
    ]


def _scan(folder: Path, wnids: Sequence[str]) -> dict[str, list[Path]]:
    """Return the images of each class folder, sorted by file name."""
    if not folder.is_dir():
        raise InputError(f"{folder} is missing: unpack tiny-imagenet-200.zip again")
    found = {entry.name for entry in folder.iterdir() if entry.is_dir()}
    if unknown := sorted(found - set(wnids)):
        raise InputError(f"{folder / unknown[0]} is no class of wnids.txt: take the folder out")
    classes = {}
    for wnid in wnids:
        files = (file for file in (folder / wnid).rglob("*") if _is_image(file))
        classes[wnid] = sorted(files, key=lambda file: file.name)
        if not classes[wnid]:
            raise InputError(
                f"{folder / wnid} has no image: every class of wnids.txt needs some; "
                "unpack tiny-imagenet-200.zip again"
            )
    return classes


def _annotated(path: Path, wnids: Sequence[str]) -> dict[str, list[Path]]:
    """Return the images that `path` gives to each class, sorted by file name."""
    folder = path.parent / "images"
    present = {file.name for file in folder.iterdir() if _is_image(file)} if folder.is_dir() else {}
    classes: dict[str, list[Path]] = {wnid: [] for wnid in wnids}
    seen = set()
    for number, line in enumerate(_lines(path), start=1):
        name, _, rest = line.partition("\t")
        wnid = rest.split("\t")[0].strip()
        if not name or not wnid:
            raise InputError(f"{path}:{number}: {line!r} is not 'image<tab>id<tab>box'")
        if wnid not in classes:
            raise InputError(f"{path}:{number}: {wnid} is no class of wnids.txt")
        if name not in present:
            raise InputError(
                f"{path}:{number}: {folder / name} does not exist: "
                "unpack tiny-imagenet-200.zip again"
            )
        if name in seen:
            raise InputError(f"{path}:{number}: {name} is annotated twice")
        seen.add(name)
        classes[wnid].append(folder / name)
    if forgotten := sorted(set(present) - seen):
        raise InputError(
            f"{path} has no line for {forgotten[0]} (images in all: {len(present)}, annotated: "
            f"{len(seen)}): unpack tiny-imagenet-200.zip again"
        )
    return {wnid: sorted(files, key=lambda file: file.name) for wnid, files in classes.items()}


def _is_image(file: Path) -> bool:
    return file.suffix.lower() in _SUFFIXES and not file.name.startswith(".")


def _lines(path: Path) -> list[str]:
    try:
        return read_bytes(path).decode("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path} can't be read as text ({error}): unpack tiny-imagenet-200.zip again"
        ) from error
