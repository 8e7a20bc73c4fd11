"""Where artifacts lie below a results folder, today and in version 0.1.0."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ltpipe.plan.stages import MANIFEST, NAMES, RESULTS
from ltpipe.utils.errors import InputError

_DIGEST = re.compile(r"[0-9a-f]{10}")
_SEED = re.compile(r"seed\d+")
# What names of artifacts have in common that differ in their digests only: stage, names, seed.
Kin = tuple[str, ...]


@dataclass(frozen=True)
class Place:
    """An artifact's folder: `folder` on disk, `name` as plans call it (results/...)."""

    folder: Path
    name: str

    @property
    def finished(self) -> bool:
        """Whether its manifest, the last file to be written, is there."""
        return (self.folder / MANIFEST).is_file()

    @cached_property
    def parts(self) -> tuple[str, ...]:
        """The stage's folder, the names, the digest and the seed, of which it may have no seed."""
        return tuple(self.name.split("/")[1:])

    @property
    def digest(self) -> str:
        """The 10 hex digits in its name; empty where the name has none."""
        at = 1 + NAMES[self.parts[0]]
        return self.parts[at] if len(self.parts) > at else ""

    @property
    def kin(self) -> Kin:
        """All of its name but the digest."""
        return kin_of(self.name)


def kin_of(name: str) -> Kin:
    """Return all of an artifact's name but the digest: its stage's folder, its names, its seed."""
    parts = name.split("/")[1:]
    at = 1 + NAMES[parts[0]]
    return (*parts[:at], *parts[at + 1 :])


def find_tree(path: Path) -> Path:
    """Return the results folder that `path` is, or lies in, or contains under that name.

    Raises:
        InputError: there is none.
    """
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    for folder in (path / RESULTS, path, *path.absolute().parents):
        if is_tree(folder):
            return folder
    raise InputError(f"{path}: no results folder (one with {', '.join(NAMES)} in it) here or above")


def is_tree(folder: Path) -> bool:
    """Return whether a folder is named or laid out like a results folder."""
    inside = any((folder / stage).is_dir() for stage in NAMES)
    return inside and (folder.name == RESULTS or not (folder / "Snakefile").exists())


def places(tree: Path) -> Iterator[Place]:
    """Yield every artifact's folder in a results folder, finished or not; links are not followed.

    Networks that are not trained, imported embeddings, subsets and pages have no seed. Pages of
    version 0.1.0 have no digest either.
    """
    for stage, names in NAMES.items():
        for parent in _below([tree / stage], names):
            if stage == "experiments" and (parent / MANIFEST).is_file():
                yield _place(parent, tree)
            for folder in _folders(parent):
                if _DIGEST.fullmatch(folder.name):
                    yield from _versions(folder, tree)


def _versions(folder: Path, tree: Path) -> Iterator[Place]:
    """Yield the artifacts of one digest: those of its seeds, or the one that has none."""
    seeds = [inner for inner in _folders(folder) if _SEED.fullmatch(inner.name)]
    if not seeds or (folder / MANIFEST).is_file():
        yield _place(folder, tree)
    for inner in seeds:
        yield _place(inner, tree)


def _place(folder: Path, tree: Path) -> Place:
    return Place(folder, f"{RESULTS}/{folder.relative_to(tree).as_posix()}")


def place_of(path: Path, tree: Path) -> Place:
    """Return the artifact that a path inside `tree` is, or is part of.

    Raises:
        InputError: the path is no artifact's.
    """
    inside = Path(os.path.abspath(path)).relative_to(os.path.abspath(tree)).parts  # noqa: PTH100
    length = _length(inside)
    if not length and inside[:1] == ("experiments",) and len(inside) > 1:
        # An experiment's newest report, or a report of version 0.1.0.
        named = tree.joinpath(*inside[:2])
        latest = (named / "latest").resolve()
        if (named / MANIFEST).is_file():
            length = 2
        elif (latest / MANIFEST).is_file() and latest.parent == named.resolve():
            return Place(named / latest.name, f"{RESULTS}/experiments/{inside[1]}/{latest.name}")
    if not length:
        raise InputError(f"{path}: no artifact; name a folder such as {RESULTS}/stage2/.../seed0")
    found = inside[:length]
    return Place(tree.joinpath(*found), "/".join([RESULTS, *found]))


def recorded_name(path: str) -> str:
    """Return what plans call the artifact that lay at `path` when it was read."""
    parts = Path(path).parts
    for start in range(len(parts) - 1, 0, -1):
        if parts[start] in NAMES and parts[start - 1] == RESULTS:
            return "/".join([RESULTS, *parts[start:]])
    return Path(path).as_posix()


def side_name(inside: str) -> str | None:
    """Return the artifact whose log or benchmark lies at `inside` below its folder, or None."""
    stem = Path(inside).with_suffix("").as_posix().removesuffix(".published")
    parts = tuple(stem.split("/"))
    page = parts[0] == "experiments" and len(parts) == 2
    return f"{RESULTS}/{stem}" if page or _length(parts) == len(parts) else None


def _length(parts: tuple[str, ...]) -> int:
    """Return how many parts of a path below the results folder name an artifact; 0 if none do."""
    if not parts or parts[0] not in NAMES:
        return 0
    at = 1 + NAMES[parts[0]]
    if len(parts) <= at or not _DIGEST.fullmatch(parts[at]):
        return 0
    return at + (2 if len(parts) > at + 1 and _SEED.fullmatch(parts[at + 1]) else 1)


def _below(folders: list[Path], depth: int) -> list[Path]:
    for _ in range(depth):
        folders = [inner for folder in folders for inner in _folders(folder)]
    return folders


def _folders(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as listed:
            inner = [Path(entry.path) for entry in listed if entry.is_dir(follow_symlinks=False)]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(inner)
