"""MedMNIST's npz files, such as OCTMNIST."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from ltpipe.config.datasets import ImageDataset
from ltpipe.config.registry import reader
from ltpipe.data.download import Remote, fetch_file
from ltpipe.data.images import Images
from ltpipe.data.sources import Part, Source
from ltpipe.utils.errors import InputError
from ltpipe.utils.outside import checked
from ltpipe.utils.paths import DEFAULT_ROOT, FETCH

_URL = "https://zenodo.org/records/10519652/files/"
_MD5 = {
    "octmnist": "c68d92d5b585d8d81f7112f81e2d0842",
    "pneumoniamnist": "28209eda62fecd6e6a2d98b1501bb15f",
}
_CLASS_NAMES = {
    "octmnist": (
        "choroidal neovascularization",
        "diabetic macular edema",
        "drusen",
        "normal",
    ),
    "pneumoniamnist": ("normal", "pneumonia"),
}
_FOLDER = "medmnist"


class PaddedImages:
    """Images held in memory; zeros surround them up to the stored size.

    Args:
        array: (N, h, w, c) uint8.
        size: stored (height, width), no smaller than (h, w).
        channels: stored channels: c, or more of which each repeats the only one.
    """

    def __init__(self, array: np.ndarray, size: tuple[int, int], channels: int) -> None:
        self._array = array
        self._shape = (*size, channels)
        height, width = array.shape[1:3]
        top, left = (size[0] - height) // 2, (size[1] - width) // 2
        self._inside = np.s_[:, top : top + height, left : left + width]

    @property
    def shape(self) -> tuple[int, int, int]:
        return self._shape

    def __len__(self) -> int:
        return len(self._array)

    def nbytes(self, n: int) -> int:
        return n * int(np.prod(self._shape))

    def load(self, index: np.ndarray) -> np.ndarray:
        batch = np.zeros((len(index), *self._shape), dtype=np.uint8)
        batch[self._inside] = self._array[index]
        return batch


@reader("medmnist", paper="Yang et al., Scientific Data 2023")
class MedMNISTDataset(ImageDataset):
    """A MedMNIST file by its name without `.npz`; smaller images are padded to the stored size.

    NAME.npz is looked for under the root and in its folder medmnist.
    """

    source: Literal["medmnist"]
    file: str = Field(pattern="^[A-Za-z0-9_-]+$")

    def files(self, root: Path | None) -> Iterator[tuple[str, str]]:
        root = root or DEFAULT_ROOT
        path = find_medmnist(self.file, root)
        if path is None:
            raise InputError(
                f"{self.file}.npz is not under {root}: put it into {root / _FOLDER}; {FETCH}"
            )
        yield path.name, str(path)

    def fetch(self, root: Path | None) -> None:
        root = root or DEFAULT_ROOT
        if find_medmnist(self.file, root) is None:
            _download(self.file, root)

    def read(self, root: Path | None) -> Source:
        self.fetch(root)
        path = find_medmnist(self.file, root or DEFAULT_ROOT)
        assert path is not None
        return read_medmnist(path, self.input.kept, self.input.channels)


def read_medmnist(path: Path, size: tuple[int, int], channels: int) -> Source:
    """Open a MedMNIST file of one-label images with its training, validation and test part.

    Images are centred in zeros up to `size`. Grey images are repeated for three channels.

    Raises:
        InputError: the file is damaged or of another kind, or its images are larger than `size`.
    """
    arrays = _load(path)
    names = _CLASS_NAMES.get(path.stem)
    if names is None:
        names = tuple(str(label) for label in range(int(arrays["train_labels"].max()) + 1))

    def part(split: str) -> Part:
        labels = arrays[f"{split}_labels"][:, 0].astype(np.int64)
        if labels.min() < 0 or labels.max() >= len(names):
            raise InputError(
                f"{path}: {split}_labels reach from {labels.min()} to {labels.max()} but the "
                f"classes are 0 .. {len(names) - 1}: the file is damaged"
            )
        return Part(_images(path, arrays[f"{split}_images"], size, channels), labels)

    return Source(list(names), train=part("train"), val=part("val"), test=part("test"))


def _images(path: Path, array: np.ndarray, size: tuple[int, int], channels: int) -> Images:
    height, width = array.shape[1:3]
    if size[0] < height or size[1] < width:
        raise InputError(
            f"{path} has images of {height} x {width}, larger than the stored size "
            f"{size[0]} x {size[1]}: raise the data set's size"
        )
    array = array.reshape(len(array), height, width, -1)
    if array.shape[3] > channels:
        raise InputError(
            f"{path} has images of {array.shape[3]} channels, which {channels} can't hold: "
            "set channels to 3"
        )
    return PaddedImages(array, size, channels)


def find_medmnist(name: str, root: Path) -> Path | None:
    """Return the file called NAME.npz in `root` or its folder medmnist; None if there is none."""
    for path in (root / f"{name}.npz", root / _FOLDER / f"{name}.npz"):
        if path.is_file():
            return path
    return None


def _download(name: str, root: Path) -> None:
    path = root / _FOLDER / f"{name}.npz"
    if name not in _MD5:
        raise InputError(
            f"{name}.npz is neither in {root} nor in {root / _FOLDER}: put it there "
            "(data.root or LTPIPE_DATA sets another folder)"
        )
    remote = Remote(
        name=f"{name}.npz",
        url=f"{_URL}{name}.npz",
        md5=_MD5[name],
        advice=f"put {name}.npz into {path.parent}",
    )
    fetch_file(remote, path)


def _load(path: Path) -> dict[str, np.ndarray]:
    """Return the images and labels of all parts; labels are (n, 1) integers."""
    arrays = {}
    try:
        with np.load(checked(path), allow_pickle=False) as file:
            for split in ("train", "val", "test"):
                for kind in ("images", "labels"):
                    arrays[f"{split}_{kind}"] = file[f"{split}_{kind}"]
    except (
        OSError,
        EOFError,
        KeyError,
        TypeError,
        ValueError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise InputError(
            f"{path} is not a whole MedMNIST file ({error}): download it again"
        ) from error
    sizes = set()
    for split in ("train", "val", "test"):
        images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
        if (
            images.dtype != np.uint8
            or images.ndim not in (3, 4)
            or (images.ndim == 4 and images.shape[3] != 3)
            or not np.issubdtype(labels.dtype, np.integer)
            or labels.shape != (len(images), 1)
            or not len(images)
        ):
            raise InputError(
                f"{path} holds {images.dtype} {split}_images {images.shape} and {labels.dtype} "
                f"{split}_labels {labels.shape}; uint8 (n, height, width) or (n, height, width, "
                "3) and integers (n, 1) are needed: it is damaged or no set of 2-D images with "
                "one label each"
            )
        sizes.add(images.shape[1:])
    if len(sizes) > 1:
        raise InputError(
            f"{path} has images of different sizes in its parts ({sorted(sizes)}): "
            "download it again"
        )
    return arrays
