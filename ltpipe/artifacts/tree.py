"""Where artifacts lie below a results folder."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ltpipe.artifacts.manifest import MANIFEST
from ltpipe.plan.layout import RESULTS
from ltpipe.utils.errors import InputError

# How many folders deep the artifacts of a stage lie below it; DESIGN: stage/names/digest/seed.
_DIGEST = re.compile(r"[0-9a-f]{10}")
DEPTHS = {"data": 2, "stage1": 4, "features": 4, "filters": 4, "stage2": 4, "experiments": 1}


@dataclass(frozen=True)
class Place:
    """An artifact folder: `folder` on disk, `name` as plans call it (results/...)."""

    folder: Path
    name: str

    @property
    def finished(self) -> bool:
        """Whether its manifest, the last file to be written, is there."""
        return (self.folder / MANIFEST).is_file()


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
    raise InputError(
        f"{path}: no results folder (one with {', '.join(DEPTHS)} in it) here or above"
    )


def is_tree(folder: Path) -> bool:
    """Return whether a folder is named or laid out like a results folder."""
    inside = any((folder / stage).is_dir() for stage in DEPTHS)
    return inside and (folder.name == RESULTS or not (folder / "Snakefile").exists())


def places(tree: Path) -> Iterator[Place]:
    """Yield every artifact folder of a results folder, finished or not; links are not followed."""
    for stage, depth in DEPTHS.items():
        for folder in sorted(_below(tree / stage, depth)):
            inside = folder.relative_to(tree)
            if _is_artifact(folder, depth):
                yield Place(folder, f"{RESULTS}/{inside.as_posix()}")


def _is_artifact(folder: Path, depth: int) -> bool:
    """Return whether a folder at the depth of artifacts is one, and not something else's."""
    if depth == 1:
        return (folder / MANIFEST).is_file()
    named = folder if depth == 2 else folder.parent
    return _DIGEST.fullmatch(named.name) is not None


def place_of(path: Path, tree: Path) -> Place:
    """Return the artifact that a path inside `tree` is, or is part of.

    Raises:
        InputError: the path is above every artifact.
    """
    inside = Path(os.path.abspath(path)).relative_to(os.path.abspath(tree))  # noqa: PTH100
    depth = DEPTHS.get(inside.parts[0], 0) if inside.parts else 0
    if not depth or len(inside.parts) <= depth:
        raise InputError(f"{path}: no artifact; name a folder such as {RESULTS}/stage2/.../seed0")
    inside = Path(*inside.parts[: depth + 1])
    return Place(tree / inside, f"{RESULTS}/{inside.as_posix()}")


def recorded_place(path: str) -> str:
    """Return what plans call the artifact that lay at `path` when it was read."""
    parts = Path(path).parts
    for start in range(len(parts) - 1, 0, -1):
        if parts[start] in DEPTHS and parts[start - 1] == RESULTS:
            return "/".join([RESULTS, *parts[start:]])
    return Path(path).as_posix()


def _below(folder: Path, depth: int) -> list[Path]:
    if depth == 0:
        return [folder]
    try:
        entries = list(os.scandir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []
    inner = [Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False)]
    return [found for path in inner for found in _below(path, depth - 1)]
