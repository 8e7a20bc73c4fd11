"""List, and on request remove, what no experiment file needs."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ltpipe.artifacts.manifest import MANIFEST
from ltpipe.artifacts.tree import is_tree, places
from ltpipe.plan.layout import RESULTS
from ltpipe.plan.workload import load_workload
from ltpipe.utils.errors import InputError
from ltpipe.utils.io import is_temporary

_SIDES = {"logs": ".log", "benchmarks": ".tsv"}


@dataclass(frozen=True)
class Waste:
    """A file or folder that nothing needs, its size in bytes, and what it is."""

    path: Path
    size: int
    what: str


def find_waste(
    experiments: Sequence[Path], results: Path = Path(RESULTS), catalogue: Path | None = None
) -> list[Waste]:
    """Return the artifacts below `results` that no experiment file needs, with logs and benchmarks.

    Also files that a killed run left half-written. Files that are no artifacts are left alone.

    Raises:
        InputError: an experiment file can't be read, or `results` is no results folder.
    """
    # What needs data sets that are not there now is needed all the same.
    needed = {
        folder for path in experiments for folder in load_workload(path, catalogue).everything
    }
    if not is_tree(results):
        raise InputError(f"{results}: no results folder")
    waste = []
    for place in places(results):
        if place.name not in needed:
            waste.append(Waste(place.folder, _size(place.folder), "artifact"))
            inside = place.folder.relative_to(results).as_posix()
            for side, suffix in _SIDES.items():
                path = results / side / f"{inside}{suffix}"
                if path.is_file() and not _has_links(path, results):
                    waste.append(Waste(path, path.stat().st_size, side))
        else:
            waste += [
                Waste(path, path.stat().st_size, "half-written")
                for path in sorted(place.folder.rglob(".*"))
                if is_temporary(path) and path.is_file()
            ]
    # A report is made in a folder of this kind beside its own.
    for path in sorted((results / "experiments").glob(".*.*")):
        if path.is_dir():
            waste.append(Waste(path, _size(path), "half-written"))
    return waste


def remove(waste: Sequence[Waste], results: Path) -> None:
    """Delete what `find_waste` found, and the folders that it leaves empty.

    A folder's manifest goes first, so that one that is half gone is never taken for whole.

    Raises:
        InputError: a Snakemake is at work here, something lies outside `results`, or the system
            refuses; names what to do.
    """
    _check_no_run(results)
    root = results.resolve()
    for item in waste:
        inside = item.path.parent.resolve().is_relative_to(root)
        if not inside or item.path.is_symlink():
            raise InputError(f"{item.path}: lies outside {results}; nothing is removed")
    for item in waste:
        try:
            if item.path.is_dir():
                (item.path / MANIFEST).unlink(missing_ok=True)
                shutil.rmtree(item.path)
            else:
                item.path.unlink(missing_ok=True)
        except OSError as error:
            raise InputError(f"{item.path}: can't be removed ({error.strerror})") from None
        _remove_empty_parents(item.path.parent, root)


def _check_no_run(results: Path) -> None:
    locks = results.absolute().parent / ".snakemake" / "locks"
    if locks.is_dir() and any(locks.iterdir()):
        raise InputError(
            f"{locks.parent.parent}: a Snakemake runs here; wait for it, or, if it was killed, run "
            "`snakemake --unlock` first"
        )


def _remove_empty_parents(folder: Path, root: Path) -> None:
    while folder.resolve() != root:
        try:
            folder.rmdir()
        except OSError:
            return
        folder = folder.parent


def _has_links(path: Path, root: Path) -> bool:
    steps = [path, *path.parents]
    return any(step.is_symlink() for step in steps[: steps.index(root)])


def _size(folder: Path) -> int:
    return sum(_sizes(folder))


def _sizes(folder: Path) -> Iterator[int]:
    for top, _, names in os.walk(folder):
        for name in names:
            yield (Path(top) / name).lstat().st_size
