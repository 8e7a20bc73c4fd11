"""What a user's images or embeddings are like: classes, imbalance, sizes, damage."""

from __future__ import annotations

import warnings
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from PIL import Image

from ltpipe.data.loading import dataset_settings
from ltpipe.data.readers.features import read_features
from ltpipe.data.readers.folder import SUFFIXES
from ltpipe.data.sources import Part, Source
from ltpipe.data.subset import Subset, draw_from_labels
from ltpipe.evaluation.metrics import GROUPS, group_of_classes
from ltpipe.utils.errors import InputError
from ltpipe.utils.paths import data_root, locate

FEATURE_SUFFIXES = (".h5", ".hdf5", ".npz", ".npy")
LIST_SUFFIXES = (".txt", ".lst")
_SPLITS = ("train", "val", "test")
# Names that people give to the folders that are called train, val and test here.
_MEANT = {
    "training": "train",
    "validation": "val",
    "valid": "val",
    "dev": "val",
    "testing": "test",
    **{split: split for split in _SPLITS},
}
# Side at which the sample is decoded: enough to find damage and to take statistics.
_SAMPLE_SIDE = 32


@dataclass(frozen=True)
class ImageFacts:
    """What a sample of the images is like.

    Attributes:
        total: number of images; `sizes` (n, 2) holds height and width of those that were opened.
        modes: how many have each of Pillow's modes.
        grey: whether all are without colour.
        mean, std: of the training images' values in 0 .. 1.
        damaged: a line for each image that can't be used.
    """

    total: int
    sizes: np.ndarray
    modes: dict[str, int]
    grey: bool
    mean: float
    std: float
    damaged: list[str]
    looked_at: int


@dataclass(frozen=True)
class FeatureFacts:
    """Dimensions of embeddings and the range of their norms."""

    dimension: int
    norms: tuple[float, float]


@dataclass(frozen=True)
class Survey:
    """What there is.

    Attributes:
        dataset: the source and its files, as an experiment file names them.
        title: what it is, in words.
        class_names: name of class c.
        train: (C,) training samples of each class; `val` and `test` likewise, `val` None where
            there are none.
        split_off: the test samples are a part of what was found, for want of a test set.
        notes: what the user should know about the files.
    """

    dataset: dict[str, Any]
    title: str
    class_names: list[str]
    train: np.ndarray
    val: np.ndarray | None
    test: np.ndarray
    split_off: bool
    images: ImageFacts | None = None
    features: FeatureFacts | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def imbalance(self) -> float:
        """Largest over smallest training class."""
        return float(self.train.max() / self.train.min())

    def group_sizes(self, rule: str) -> dict[str, int]:
        """Return how many classes are many-, medium- and few-shot by `rule`."""
        found = Counter(group_of_classes(self.train.tolist(), rule))
        return {name: found[name] for name in GROUPS}


def survey(path: Path, images: Path | None, sample: int) -> Survey:
    """Look at an image folder, a training list file, or embeddings.

    Args:
        path: a folder of images, a training list, a feature file, or a folder of such files.
        images: folder that the paths of a list file are relative to (default: the list's own).
        sample: how many images to open at most, spread over all classes; 0 opens all.

    Raises:
        InputError: nothing is there, or the product could not train on it as it is.
    """
    if not path.exists():
        raise InputError(f"{path} does not exist: name a folder of images, or of feature files")
    if sample < 0:
        raise InputError(f"--sample {sample}: give a number of images, or 0 for all")
    features = _feature_file(path)
    is_list = path.is_file() and path.suffix.lower() in LIST_SUFFIXES
    if images is not None and not is_list:
        raise InputError("--images belongs to a list file: name that as the data")
    if features is not None:
        return _survey_features(features)
    if path.is_file() and not is_list:
        raise InputError(
            f"{path} is no list file ({' '.join(LIST_SUFFIXES)}) and no feature file "
            f"({' '.join(FEATURE_SUFFIXES)}); for images name their folder"
        )
    if is_list:
        return _survey_images(_list_settings(path, images), "list files", [], sample)
    notes = _check_folder(path)
    return _survey_images(
        {"source": "folder", "path": written(path)}, "image folder", notes, sample
    )


def written(path: Path) -> str:
    """Return `path` as an experiment file should name it: relative where that leads to it."""
    # Links stay as they are named, unless the name climbs.
    absolute = path.resolve() if ".." in path.parts else path.absolute()
    if absolute.is_relative_to(Path.cwd()):
        relative = absolute.relative_to(Path.cwd()).as_posix()
        # A file of the same name under the data root would be found first.
        if locate(relative, data_root(None)).resolve() == absolute.resolve():
            return relative
    return absolute.as_posix()


def _check_folder(path: Path) -> list[str]:
    """Refuse folders that would be misread; return what is left out of them."""
    entries = sorted(entry for entry in path.iterdir() if not entry.name.startswith("."))
    if not entries:
        raise InputError(f"{path} is empty: put one folder of images a class into it")
    folders = [entry.name for entry in entries if entry.is_dir()]
    loose = sum(entry.suffix.lower() in SUFFIXES for entry in entries if entry.is_file())
    if loose and not folders:
        raise InputError(
            f"{path} holds {loose} images but no folders: put the images of each class into a "
            "folder of its name"
        )
    misnamed = [
        f"{name} as {_MEANT[name.lower()]}"
        for name in folders
        if name.lower() in _MEANT and name not in _SPLITS
    ]
    splits = {_MEANT[name.lower()] for name in folders if name.lower() in _MEANT}
    if misnamed and (len(splits) > 1 or len(splits) == len(folders)):
        raise InputError(
            f"{path}: folders of splits are called train, val and test; rename "
            f"{', '.join(misnamed)}"
        )
    notes = [f"{loose} images lie beside the class folders and are not used"] if loose else []
    others = sorted(set(folders) - set(_SPLITS)) if "train" in folders else []
    if others:
        notes.append(f"beside train, val and test, folders are not used: {', '.join(others)}")
    return notes


def _list_settings(path: Path, images: Path | None) -> dict[str, Any]:
    files = {
        f"{split}_list": written(beside)
        for split, beside in _beside(path).items()
        if beside is not None
    }
    return {"source": "list", "path": written(images or path.parent), **files}


def _beside(train: Path) -> dict[str, Path | None]:
    """Return the files of all splits by the training file's name; None where there is no `val`.

    Raises:
        InputError: the name does not say train, or there is no test file beside it.
    """
    head, separator, tail = train.name.rpartition("train")
    if not separator:
        raise InputError(
            f"{train}: its name must hold the word train, so that the file of the same name with "
            "test is found beside it"
        )
    found: dict[str, Path | None] = {"train": train}
    for split in ("val", "test"):
        other = train.with_name(f"{head}{split}{tail}")
        found[split] = other if other.is_file() else None
        if split == "test" and found[split] is None:
            raise InputError(
                f"{other} does not exist: beside {train.name} a test file of that name is needed"
            )
    return found


def _survey_images(dataset: dict[str, Any], title: str, notes: list[str], sample: int) -> Survey:
    settings = dataset_settings({**dataset, "input": {"size": [_SAMPLE_SIDE] * 2}})
    source = settings.read(data_root(None))
    subset = _drawn(source.class_names, *source.labels)
    split_off = dataset["source"] == "folder" and not _has_test_folder(dataset["path"])
    return Survey(
        dataset=dataset,
        title=title,
        split_off=split_off,
        images=_look_at(source, sample),
        notes=notes,
        **_counts(subset),
    )


def _has_test_folder(path: str) -> bool:
    folder = locate(path, data_root(None))
    return (folder / "train").is_dir() and (folder / "test").is_dir()


def _drawn(
    names: list[str], train: np.ndarray, val: np.ndarray | None, test: np.ndarray | None
) -> Subset:
    """Return what an experiment would be given, by the product's own checks."""
    if len(names) < 2:
        raise InputError(f"all training samples are of one class ({names[0]}): two are needed")
    return draw_from_labels(
        names,
        train,
        val,
        test,
        imbalance=None,
        profile="exp",
        max_count=None,
        seed=0,
        val_fraction=0.0,
        class_order="natural",
    )


def _counts(subset: Subset) -> dict[str, Any]:
    classes = len(subset.class_names)
    return {
        "class_names": subset.class_names,
        "train": np.array(subset.class_counts),
        "val": np.bincount(subset.val_labels, minlength=classes)
        if len(subset.val_labels)
        else None,
        "test": np.bincount(subset.test_labels, minlength=classes),
    }


def _look_at(source: Source, sample: int) -> ImageFacts:
    """Open a sample of the images, spread evenly over the classes of all parts."""
    parts = [part for part in (source.train, source.val, source.test) if part is not None]
    total = sum(len(part.labels) for part in parts)
    chosen = np.arange(total)
    if sample and sample < total:
        chosen = np.unique(np.linspace(0, total - 1, sample).astype(np.int64))
    opened: list[_Opened] = []
    damaged = []
    training = start = 0
    for part in parts:
        end = start + len(part.labels)
        for place in chosen[(chosen >= start) & (chosen < end)] - start:
            try:
                part.images.load(np.array([place]))
                opened.append(_open(part, int(place)))
            except InputError as error:
                damaged.append(str(error))
        start = end
        training = training or len(opened)
    if not opened:
        raise InputError(f"no image can be read; the first of {len(damaged)}: {damaged[0]}")
    mean, square = np.mean([image.moments for image in opened[:training]], axis=0)
    return ImageFacts(
        total=total,
        sizes=np.array([image.size for image in opened]),
        modes=dict(Counter(image.mode for image in opened).most_common()),
        grey=all(image.grey for image in opened),
        mean=float(mean),
        std=float(np.sqrt(square - mean**2)),
        damaged=damaged,
        looked_at=len(chosen),
    )


@dataclass(frozen=True)
class _Opened:
    """An image's (height, width), mode, whether it is grey, and its mean and mean square."""

    size: tuple[int, int]
    mode: str
    grey: bool
    moments: tuple[float, float]


def _open(part: Part, place: int) -> _Opened:
    paths: list[Path] = part.images.paths  # type: ignore[attr-defined]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with Image.open(paths[place]) as image:
            values = np.asarray(image.convert("RGB"), dtype=np.float32) / 255
            return _Opened(
                size=(image.height, image.width),
                mode=image.mode,
                grey=bool((values == values[..., :1]).all()),
                moments=(float(values.mean()), float((values**2).mean())),
            )


def _feature_file(path: Path) -> Path | None:
    """Return the training file of embeddings that `path` is or holds; None if there is none.

    Raises:
        InputError: the folder holds several.
    """
    if path.is_file():
        return path if path.suffix.lower() in FEATURE_SUFFIXES else None
    files = [
        file
        for file in sorted(path.iterdir())
        if file.suffix.lower() in FEATURE_SUFFIXES and "label" not in file.stem.lower()
    ]
    training = [file for file in files if "train" in file.stem]
    if len(training) > 1:
        raise InputError(
            f"{path} holds several training files: name one of "
            f"{', '.join(file.name for file in training)}"
        )
    if files and not training:
        raise InputError(
            f"{path} holds {files[0].name} but no training file: its name must hold the word train"
        )
    return training[0] if training else None


def _survey_features(train: Path) -> Survey:
    store: dict[str, str] = {}
    labels: dict[str, np.ndarray] = {}
    norms: list[np.ndarray] = []
    dimensions: dict[str, int] = {}
    for split, path in _beside(train).items():
        if path is None or (split == "val" and _is_empty(path)):
            continue
        beside = _labels_of(path)
        features, labels[split] = read_features(path, beside)
        dimensions[path.name] = features.shape[1]
        if split == "train":
            norms = [np.linalg.norm(features, axis=1)]
        store[split] = written(path)
        if beside is not None:
            store[f"{split}_labels"] = written(beside)
    if len(set(dimensions.values())) > 1:
        told = ", ".join(f"{name}: {number}" for name, number in dimensions.items())
        raise InputError(f"{train.parent}: the files differ in their dimensions ({told})")
    names = [str(label) for label in range(int(labels["train"].max()) + 1)]
    subset = _drawn(names, labels["train"], labels.get("val"), labels["test"])
    return Survey(
        dataset={"source": "features", "stores": {"features": store}},
        title="embeddings",
        split_off=False,
        features=FeatureFacts(
            dimension=dimensions[train.name],
            norms=(float(norms[0].min()), float(norms[0].max())),
        ),
        **_counts(subset),
    )


def _is_empty(path: Path) -> bool:
    """Return whether an HDF5 file holds no sample, as our own files of a split without images."""
    if path.suffix.lower() not in (".h5", ".hdf5"):
        return False
    try:
        with h5py.File(path, "r") as file:
            return "features" in file and not len(file["features"])
    except OSError as error:
        raise InputError(f"feature file {path} can't be read: {error}") from None


def _labels_of(path: Path) -> Path | None:
    """Return the file with the labels of a .npy file; other formats hold their own.

    Raises:
        InputError: there is none.
    """
    if path.suffix.lower() != ".npy":
        return None
    choices = [path.with_name(f"{path.stem}_labels.npy")]
    if "features" in path.stem:
        choices.append(path.with_name(path.name.replace("features", "labels")))
    for choice in choices:
        if choice.is_file():
            return choice
    raise InputError(
        f"{path}: its labels are looked for in {' or '.join(choice.name for choice in choices)} "
        "beside it, and are not there"
    )
