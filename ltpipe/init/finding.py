"""What a path means as a data set: its source, its files, what of it is left out."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py

from ltpipe.data.readers import table
from ltpipe.data.readers.folder import SUFFIXES
from ltpipe.utils.errors import InputError
from ltpipe.utils.paths import data_root, locate

FEATURE_SUFFIXES = (".h5", ".hdf5", ".npz", ".npy")
LIST_SUFFIXES = (".txt", ".lst")
_SPLITS = ("train", "val", "test")
# What people call the columns of a table, the usual name first.
_COLUMNS = {
    "path": ("path", "file", "filename", "file_name", "filepath", "image", "image_path", "img"),
    "label": ("label", "class", "category", "target", "species", "class_name"),
    "split": ("split", "set", "subset", "partition"),
}
# Files that lie beside images and are no images.
_NO_IMAGES = {"", ".txt", ".csv", ".json", ".md", ".xml", ".db", ".ini"}


@dataclass(frozen=True)
class Found:
    """A data set as an experiment file names it, in words, and what to know of its files."""

    dataset: dict[str, Any]
    title: str
    notes: list[str] = field(default_factory=list)


def find_data(path: Path, images: Path | None) -> Found:
    """Return what `path` means: a folder of images, a table, a list, or embeddings.

    Args:
        path: a folder of images, a table or list of them, a feature file, a folder of such files.
        images: folder that the paths of a table or a list start from (default: its own).

    Raises:
        InputError: nothing is there, or it could mean several things.
    """
    if not path.exists():
        raise InputError(f"{path} does not exist: name a folder of images, or of feature files")
    suffix = path.suffix.lower() if path.is_file() else ""
    names_images = suffix in (*LIST_SUFFIXES, *table.SUFFIXES)
    if images is not None and not names_images:
        raise InputError("--images belongs to a table or a list file: name that as the data")
    if suffix in table.SUFFIXES:
        return Found(_table_settings(path, images), "table")
    if names_images:
        return Found(_list_settings(path, images), "list files")
    features = _feature_file(path)
    if features is not None:
        return Found({"source": "features", "stores": {"features": _store(features)}}, "embeddings")
    if path.is_file():
        raise InputError(
            f"{path} is no table ({' '.join(table.SUFFIXES)}), no list file "
            f"({' '.join(LIST_SUFFIXES)}) and no feature file ({' '.join(FEATURE_SUFFIXES)}); for "
            "images name their folder"
        )
    notes = _check_folder(path)
    return Found(
        {"source": "folder", "path": written(path), "damaged": "skip"}, "image folder", notes
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
        f"{name} as {table.SPLITS[name.lower()]}"
        for name in folders
        if name.lower() in table.SPLITS and name not in _SPLITS
    ]
    splits = {table.SPLITS[name.lower()] for name in folders if name.lower() in table.SPLITS}
    if misnamed and (len(splits) > 1 or len(splits) == len(folders)):
        raise InputError(
            f"{path}: folders of splits are called train, val and test; rename "
            f"{', '.join(misnamed)}"
        )
    notes = [f"{loose} images lie beside the class folders and are not used"] if loose else []
    kinds = Counter(
        file.suffix.lower()
        for file in path.rglob("*")
        if not file.name.startswith(".") and file.is_file()
    )
    unknown = [
        f"{number} {suffix}"
        for suffix, number in kinds.items()
        if suffix not in SUFFIXES and suffix not in _NO_IMAGES
    ]
    if unknown:
        read = " ".join(sorted(SUFFIXES))
        notes.append(f"files of other kinds are not used: {', '.join(unknown)}; read are {read}")
    others = sorted(set(folders) - set(_SPLITS)) if "train" in folders else []
    if others:
        notes.append(f"beside train, val and test, folders are not used: {', '.join(others)}")
    return notes


def _table_settings(path: Path, images: Path | None) -> dict[str, Any]:
    columns = table.read_columns(path)
    known = {name.lower(): name for name in reversed(columns)}
    chosen = {
        role: next((known[name] for name in names if name in known), None)
        for role, names in _COLUMNS.items()
    }
    for role in ("path", "label"):
        if chosen[role] is None:
            raise InputError(
                f"{path}: which column is the {role}? It has {', '.join(columns)}; call it {role}"
            )
    named = {f"{role}_column": name for role, name in chosen.items() if name not in (None, role)}
    first = next(iter(columns[str(chosen["path"])]), "")
    # Paths start from the table's folder, or from where the command is typed.
    folder = images or next(
        (place for place in (path.parent, Path()) if (place / first).is_file()), path.parent
    )
    settings = {"source": "table", "path": written(folder), "table": written(path), **named}
    return {**settings, "damaged": "skip"}


def _list_settings(path: Path, images: Path | None) -> dict[str, Any]:
    files = {f"{split}_list": written(beside) for split, beside in _beside(path).items()}
    return {"source": "list", "path": written(images or path.parent), **files, "damaged": "skip"}


def _store(train: Path) -> dict[str, str]:
    """Return the files of embeddings by the training file: all splits, and labels of .npy files."""
    store: dict[str, str] = {}
    for split, path in _beside(train).items():
        if split == "val" and _is_empty(path):
            continue
        store[split] = written(path)
        labels = _labels_of(path)
        if labels is not None:
            store[f"{split}_labels"] = written(labels)
    return store


def _beside(train: Path) -> dict[str, Path]:
    """Return the files of the splits that are there, by the training file's name."""
    head, separator, tail = train.name.rpartition("train")
    found = {"train": train}
    for split in ("val", "test") if separator else ():
        other = train.with_name(f"{head}{split}{tail}")
        if other.is_file():
            found[split] = other
    return found


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
    training = [file for file in files if "train" in file.stem] or files
    if len(training) > 1:
        raise InputError(
            f"{path} holds several files that may be the training one: name one of "
            f"{', '.join(file.name for file in training)}"
        )
    return training[0] if training else None


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
