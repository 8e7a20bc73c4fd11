"""CIFAR-10 and CIFAR-100 from their published files."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ltpipe.config.datasets import ImageDataset
from ltpipe.config.registry import reader
from ltpipe.data.download import Remote, fetch_folder
from ltpipe.data.images import ArrayImages
from ltpipe.data.sources import Part, Source
from ltpipe.utils.errors import InputError
from ltpipe.utils.outside import checked
from ltpipe.utils.paths import DEFAULT_ROOT, FETCH

_PIXELS = 3 * 32 * 32
_URL = "https://www.cs.toronto.edu/~kriz/"
_CIFAR10_NAMES = "airplane automobile bird cat deer dog frog horse ship truck"
_CIFAR100_NAMES = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly
camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile
cup dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp
lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom oak_tree
orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine possum
rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider
squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train
trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""


@dataclass(frozen=True)
class Layout:
    """The files of one data set; `label_bytes` come before the pixels, the last is the label."""

    name: str
    binary_folder: str
    python_folder: str
    train: dict[str, int]
    test: dict[str, int]
    label_bytes: int
    label_key: bytes
    archive: str
    archive_md5: str
    class_names: tuple[str, ...]

    def remote(self, root: Path) -> Remote:
        """Return the archive to download to `root`."""
        return Remote(
            name=self.name,
            url=_URL + self.archive,
            md5=self.archive_md5,
            advice=f"put the folder {self.binary_folder} or {self.python_folder} into {root}",
        )


_CIFAR10 = Layout(
    name="CIFAR-10",
    binary_folder="cifar-10-batches-bin",
    python_folder="cifar-10-batches-py",
    train={f"data_batch_{part}": 10_000 for part in range(1, 6)},
    test={"test_batch": 10_000},
    label_bytes=1,
    label_key=b"labels",
    archive="cifar-10-binary.tar.gz",
    archive_md5="c32a1d4ab5d03f1284b67883e8d87530",
    class_names=tuple(_CIFAR10_NAMES.split()),
)

_CIFAR100 = Layout(
    name="CIFAR-100",
    binary_folder="cifar-100-binary",
    python_folder="cifar-100-python",
    train={"train": 50_000},
    test={"test": 10_000},
    label_bytes=2,
    label_key=b"fine_labels",
    archive="cifar-100-binary.tar.gz",
    archive_md5="03b5dce01913d631647c71ecec9e9cb8",
    class_names=tuple(_CIFAR100_NAMES.split()),
)
LAYOUTS = {"cifar10": _CIFAR10, "cifar100": _CIFAR100}


@reader("cifar10", "cifar100", paper="Krizhevsky, 2009")
class CifarDataset(ImageDataset):
    """CIFAR-10, or CIFAR-100 with its fine labels, by its standard files.

    The binary or the Python files are looked for under the root, in their usual folder or directly.
    """

    source: Literal["cifar10", "cifar100"]

    def files(self, root: Path | None) -> Iterator[tuple[str, str]]:
        layout = LAYOUTS[self.source]
        folder = find_cifar(layout, root)
        if folder is None:
            remote = layout.remote(root or DEFAULT_ROOT)
            raise InputError(
                f"{remote.name} is not under {root or DEFAULT_ROOT}: {remote.advice}; {FETCH}"
            )
        ending = ".bin" if _is_binary(layout, folder) else ""
        for name in (*layout.train, *layout.test):
            yield name + ending, str(folder / (name + ending))

    def fetch(self, root: Path | None) -> None:
        layout, root = LAYOUTS[self.source], root or DEFAULT_ROOT
        if find_cifar(layout, root) is None:
            fetch_folder(layout.remote(root), root, layout.binary_folder)

    def read(self, root: Path | None) -> Source:
        self.fetch(root)
        layout = LAYOUTS[self.source]
        folder = find_cifar(layout, root or DEFAULT_ROOT)
        if folder is None:
            raise InputError(f"{layout.name} is not under {root}: its archive has other files")
        return Source(
            class_names=list(layout.class_names),
            train=_read_part(layout, folder, layout.train),
            test=_read_part(layout, folder, layout.test),
        )


def find_cifar(layout: Layout, root: Path | None) -> Path | None:
    """Return the folder that holds the files of one of `LAYOUTS`; None if there is none."""
    if root is None:
        return None
    for folder in (root / layout.binary_folder, root / layout.python_folder, root):
        if _is_binary(layout, folder) or (folder / next(iter(layout.train))).is_file():
            return folder
    return None


def _is_binary(layout: Layout, folder: Path) -> bool:
    return (folder / f"{next(iter(layout.train))}.bin").is_file()


def _read_part(layout: Layout, folder: Path, files: Mapping[str, int]) -> Part:
    read = _read_binary if _is_binary(layout, folder) else _read_python
    blocks = [read(layout, folder, name, records) for name, records in files.items()]
    planes = np.concatenate([pixels for pixels, _ in blocks]).reshape(-1, 3, 32, 32)
    labels = np.concatenate([labels for _, labels in blocks])
    return Part(ArrayImages(np.ascontiguousarray(planes.transpose(0, 2, 3, 1))), labels)


def _read_binary(
    layout: Layout, folder: Path, name: str, records: int
) -> tuple[np.ndarray, np.ndarray]:
    path = folder / f"{name}.bin"
    if not path.is_file():
        raise InputError(f"{path} is missing: {layout.name} needs all of its files")
    width = layout.label_bytes + _PIXELS
    found, expected = path.stat().st_size, records * width
    if found != expected:
        raise InputError(
            f"{path} has {found} bytes but {expected} are expected: download {layout.name} again"
        )
    rows = np.fromfile(checked(path), dtype=np.uint8).reshape(records, width)
    labels = rows[:, layout.label_bytes - 1].astype(np.int64)
    return rows[:, layout.label_bytes :], _checked(labels, layout, path)


def _read_python(
    layout: Layout, folder: Path, name: str, records: int
) -> tuple[np.ndarray, np.ndarray]:
    path = folder / name
    if not path.is_file():
        raise InputError(f"{path} is missing: {layout.name} needs all of its files")
    try:
        with checked(path).open("rb") as handle:
            batch = _ArrayUnpickler(handle, encoding="bytes").load()
        pixels, labels = batch[b"data"], np.asarray(batch[layout.label_key], dtype=np.int64)
    except (pickle.UnpicklingError, EOFError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{path} is not a whole {layout.name} batch ({error}), {path.stat().st_size} bytes: "
            f"download {layout.name} again"
        ) from error
    if pixels.shape != (records, _PIXELS) or pixels.dtype != np.uint8 or labels.shape != (records,):
        raise InputError(
            f"{path} holds {pixels.dtype} pixels {pixels.shape} and {labels.shape} labels but "
            f"uint8 {(records, _PIXELS)} and {(records,)} are expected: "
            f"download {layout.name} again"
        )
    return pixels, _checked(labels, layout, path)


def _checked(labels: np.ndarray, layout: Layout, path: Path) -> np.ndarray:
    classes = len(layout.class_names)
    if labels.min() < 0 or labels.max() >= classes:
        raise InputError(
            f"{path} has labels outside 0 .. {classes - 1}: it is damaged or not {layout.name}"
        )
    return labels


class _ArrayUnpickler(pickle.Unpickler):
    """Rebuilds containers, strings, numbers and NumPy arrays; refuses every other global.

    The published Python files are pickles. Unpickling can run any code that the pickle names, so
    only the names that those files use can be resolved.
    """

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ALLOWED_GLOBALS:
            return _ALLOWED_GLOBALS[module, name]
        raise pickle.UnpicklingError(f"it names {module}.{name}, which a CIFAR file never does")


def _latin1(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes encoded as {encoding}")
    return text.encode("latin1")


_RECONSTRUCT = np.empty(0).__reduce__()[0]
_ALLOWED_GLOBALS: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _latin1,
}
