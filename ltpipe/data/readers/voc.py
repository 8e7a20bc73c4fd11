"""VOC-LT: the images of Pascal VOC 2012 that show objects of one class only."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from ltpipe.config.datasets import ImageDataset, InputSettings
from ltpipe.config.registry import reader
from ltpipe.data.images import stored_images
from ltpipe.data.sources import Part, Source
from ltpipe.utils.errors import InputError, nearest
from ltpipe.utils.outside import read_bytes
from ltpipe.utils.paths import locate
from ltpipe.utils.progress import say

_NAMES = """
aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person
pottedplant sheep sofa train tvmonitor
"""
CLASS_NAMES = tuple(_NAMES.split())
VARIANTS = ("objects", "non-difficult", "image-labels")
# Images of VOC-LT by HRJBA: training in all, test by class in the order of CLASS_NAMES.
TRAIN_IMAGES = 3437
_COUNTS = "267 98 341 138 98 71 216 422 85 123 13 380 130 77 546 66 130 48 195 95"
TEST_COUNTS = tuple(int(count) for count in _COUNTS.split())
# Published annotations have a few kilobytes.
MAX_XML_BYTES = 1 << 20

Objects = Mapping[str, Sequence[tuple[int, bool]]]
Chosen = tuple[list[str], np.ndarray]


@reader("voc", paper="Everingham et al., IJCV 2010")
class VOCDataset(ImageDataset):
    """VOC-LT: the images of Pascal VOC 2012 that show one class.

    `variant` says which objects count: all (`objects`), those not difficult (`non-difficult`) or
    the classes' list files (`image-labels`); `auto` takes the first that gives the published
    numbers, else `objects`. `ids` is a file with the training images' ids.
    """

    decodes: ClassVar[bool] = True

    source: Literal["voc"]
    path: str = "VOCdevkit/VOC2012"
    variant: Literal["auto", "objects", "non-difficult", "image-labels"] = "auto"
    ids: str | None = None

    def locations(self) -> frozenset[str]:
        return frozenset({"path", "ids"})

    def files(self, root: Path | None) -> Iterator[tuple[str, str]]:
        path = locate(self.path, root)
        lists = {split: path / f"ImageSets/Main/{split}.txt" for split in ("train", "val")}
        if self.ids is not None:
            lists["ids"] = locate(self.ids, root)
        yield from [(f"{split}.txt", str(file)) for split, file in lists.items()]
        if self.variant in ("auto", "image-labels"):
            for name in CLASS_NAMES:
                for split in ("train", "val"):
                    file = f"ImageSets/Main/{name}_{split}.txt"
                    yield file, f"{path}/{file}"
        # Which of the listed images show one class is known once all annotations are read.
        images = dict.fromkeys(image for file in lists.values() for image in _read_ids(file))
        for image in images:
            yield f"JPEGImages/{image}.jpg", f"{path}/JPEGImages/{image}.jpg"
            if self.variant != "image-labels":
                yield f"Annotations/{image}.xml", f"{path}/Annotations/{image}.xml"

    def read(self, root: Path | None) -> Source:
        ids = None if self.ids is None else locate(self.ids, root)
        return read_voc(locate(self.path, root), self.input, self.variant, ids)


def read_voc(
    path: Path, stored: InputSettings, variant: str = "auto", ids: Path | None = None
) -> Source:
    """Open the one-class images of VOC 2012: ImageSets/Main/train.txt, and val.txt to test on.

    HRJBA does not say how its images were chosen. `variant` decides which are of one class:
    ``objects`` (all annotated objects are of one class), ``non-difficult`` (likewise without
    objects marked difficult), ``image-labels`` (the class's list file says 1 and all other classes'
    say -1). ``auto`` takes the first of them that gives 3,437 training images and the paper's 3,539
    test images class by class; if none does, ``objects``, and says so with the numbers.

    Args:
        ids: a file with an image's id on each line: the training images in place of train.txt,
            which are then no test images; ``auto`` means ``objects``.

    Raises:
        InputError: a missing or damaged file, by name and line, or an unknown class.
    """
    train, test = (_read_ids(path / f"ImageSets/Main/{split}.txt") for split in ("train", "val"))
    if ids is not None:
        train = _read_ids(ids)
        listed = set(train)
        test = [image for image in test if image not in listed]
        variant = "objects" if variant == "auto" else variant
    chosen_train, chosen_test = _choose(path, variant, train, test)
    present = {file.name for file in path.glob("JPEGImages/*.jpg")}

    def part(chosen: Chosen) -> Part:
        images, labels = chosen
        for image in images:
            if f"{image}.jpg" not in present:
                raise InputError(
                    f"{path}/JPEGImages/{image}.jpg does not exist: unpack VOC 2012 again"
                )
        files = [path / f"JPEGImages/{image}.jpg" for image in images]
        return Part(stored_images(files, stored), labels)

    return Source(list(CLASS_NAMES), train=part(chosen_train), test=part(chosen_test))


def _choose(
    path: Path, variant: str, train: Sequence[str], test: Sequence[str]
) -> tuple[Chosen, Chosen]:
    """Return the one-class images of both lists, with their labels (n,) int64."""
    objects: Objects = {}
    if variant != "image-labels":
        objects = {
            image: _read_objects(path / f"Annotations/{image}.xml") for image in [*train, *test]
        }

    def choose(variant: str) -> tuple[Chosen, Chosen]:
        if variant == "image-labels":
            labels = _by_lists(path)
        else:
            labels = _by_objects(objects, with_difficult=variant == "objects")
        return _labelled(train, labels), _labelled(test, labels)

    if variant != "auto":
        return choose(variant)
    for name in VARIANTS:
        chosen = choose(name)
        if _is_published(*chosen):
            return chosen
    chosen = choose("objects")
    counts = [np.bincount(labels, minlength=len(CLASS_NAMES)).tolist() for _, labels in chosen]
    say(
        f"VOC-LT: no variant gives the published {TRAIN_IMAGES} training and {sum(TEST_COUNTS)} "
        f"test images; variant objects gives {sum(counts[0])} ({_listed(counts[0])}) and "
        f"{sum(counts[1])} ({_listed(counts[1])})"
    )
    return chosen


def _is_published(train: Chosen, test: Chosen) -> bool:
    counts = np.bincount(test[1], minlength=len(CLASS_NAMES))
    return len(train[1]) == TRAIN_IMAGES and counts.tolist() == list(TEST_COUNTS)


def _listed(counts: Sequence[int]) -> str:
    return ", ".join(f"{name} {n}" for name, n in zip(CLASS_NAMES, counts, strict=True))


def _labelled(images: Sequence[str], labels: Mapping[str, int]) -> Chosen:
    kept = [image for image in images if image in labels]
    return kept, np.array([labels[image] for image in kept], dtype=np.int64)


def _by_objects(objects: Objects, with_difficult: bool) -> dict[str, int]:
    """Return the class of each image whose objects are all of one."""
    labels = {}
    for image, found in objects.items():
        classes = {label for label, difficult in found if with_difficult or not difficult}
        if len(classes) == 1:
            labels[image] = classes.pop()
    return labels


def _by_lists(path: Path) -> dict[str, int]:
    """Return the class of each image that one class's list files mark 1 and all others' -1.

    A line is an image and 1 (shown), 0 (shown, but difficult) or -1 (not shown).
    """
    marks: dict[str, list[tuple[int, str]]] = {}
    for label, name in enumerate(CLASS_NAMES):
        for split in ("train", "val"):
            file = path / f"ImageSets/Main/{name}_{split}.txt"
            for number, line in enumerate(_lines(file), start=1):
                words = line.split()
                if len(words) != 2 or words[1] not in ("-1", "0", "1"):
                    raise InputError(f"{file}:{number}: {line!r} is not 'image' and -1, 0 or 1")
                if words[1] != "-1":
                    marks.setdefault(words[0], []).append((label, words[1]))
    return {
        image: found[0][0]
        for image, found in marks.items()
        if len(found) == 1 and found[0][1] == "1"
    }


def _read_objects(path: Path) -> list[tuple[int, bool]]:
    """Return the class of each annotated object and whether it is marked difficult."""
    try:
        if path.stat().st_size > MAX_XML_BYTES:
            raise InputError(
                f"{path} has {path.stat().st_size} bytes, more than the {MAX_XML_BYTES} that an "
                "annotation may have: unpack VOC 2012 again"
            )
        text = read_bytes(path).decode("utf-8")
        # Entities, which can swell without bound, need a document type; annotations have none.
        if "<!DOCTYPE" in text or "<!ENTITY" in text:
            raise InputError(
                f"{path} declares a document type or an entity, which VOC never does: "
                "unpack VOC 2012 again"
            )
        found = ET.fromstring(text).findall("object")
    except (OSError, UnicodeDecodeError, ET.ParseError) as error:
        raise InputError(
            f"annotation {path} can't be read ({error}): unpack VOC 2012 again"
        ) from error
    objects = []
    for item in found:
        # The parts of a person have names too, one level deeper.
        name = (item.findtext("name") or "").strip()
        difficult = (item.findtext("difficult") or "0").strip()
        if name not in CLASS_NAMES:
            raise InputError(
                f"{path}: {name!r} is none of VOC's classes{nearest(name, CLASS_NAMES)}"
            )
        if difficult not in ("0", "1"):
            raise InputError(f"{path}: difficult is {difficult!r}, not 0 or 1")
        objects.append((CLASS_NAMES.index(name), difficult == "1"))
    return objects


def _read_ids(path: Path) -> list[str]:
    ids = []
    for number, line in enumerate(_lines(path), start=1):
        image = line.strip()
        if not image.replace("_", "").isalnum():
            raise InputError(f"{path}:{number}: {line!r} is not an image's id, such as 2008_000008")
        ids.append(image)
    if not ids:
        raise InputError(f"{path} is empty: an image's id on each line is needed")
    if len(set(ids)) < len(ids):
        repeated = next(image for image in ids if ids.count(image) > 1)
        raise InputError(f"{path} names image {repeated} twice")
    return ids


def _lines(path: Path) -> list[str]:
    try:
        return read_bytes(path).decode("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} can't be read as text: {error}") from error
