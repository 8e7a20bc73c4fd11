"""List, and on request remove, what no experiment file needs."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ltpipe.artifacts.relatives import Tree
from ltpipe.artifacts.tree import Kin, Place, is_tree, kin_of, places, side_name
from ltpipe.plan.contents import ABSENT
from ltpipe.plan.layout import ArtifactSpec
from ltpipe.plan.stages import LATEST, MANIFEST, RESULTS, RESUME
from ltpipe.plan.workload import load_workload
from ltpipe.utils.errors import InputError
from ltpipe.utils.io import is_temporary
from ltpipe.utils.lock import held

_PLANNING_SECONDS = 3600.0
_SIDES = {"logs": ".log", "benchmarks": ".tsv"}


@dataclass(frozen=True)
class Waste:
    """A file or folder that nothing needs, its size in bytes, and what it is.

    `files` are those to remove where the folder holds others that stay.
    """

    path: Path
    size: int
    what: str
    files: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Survey:
    """What nothing needs, and the superseded trainings that are kept all the same."""

    waste: list[Waste]
    superseded: list[Place]


def find_waste(
    experiments: Sequence[Path],
    results: Path = Path(RESULTS),
    catalogue: Path | None = None,
    superseded: bool = False,
) -> Survey:
    """Return what lies below `results` and no experiment file needs.

    Artifacts with their logs and benchmarks, reports but each experiment's newest, plans of earlier
    runs, files that a killed run left half-written. Trainings are dear: those that have the names
    and the seed of one that is needed are kept, with what they are made from, unless `superseded`.
    Files that are none of these are left alone.

    Raises:
        InputError: an experiment file can't be read, or `results` is no results folder.
    """
    # What needs data sets that are not there now is needed all the same.
    loads = [load_workload(path, catalogue) for path in experiments]
    needed = {name: item for load in loads for name, item in load.everything.items()}
    if not is_tree(results):
        raise InputError(f"{results}: no results folder")
    tree = Tree(results)
    found = list(places(results))
    kept = _kept(needed, found, results)
    older = _superseded(needed, found, kept, tree)
    if not superseded:
        kept |= {place.name for place in older} | _made_from(older, tree)
    waste: list[Waste] = []
    for place in found:
        if place.name not in kept:
            waste.append(_artifact(place, results))
        else:
            waste += _half_written(place.folder)
    waste += [item for side in _SIDES for item in _side_files(side, results, kept)]
    waste += _plans(results)
    for side in ("plans", "fingerprints", *_SIDES):
        # One that plans at this moment may be writing there.
        long_ago = time.time() - _PLANNING_SECONDS
        waste += [item for item in _half_written(results / side) if _changed(item) < long_ago]
    for path in sorted((results / "experiments").glob("*/.*.tmp")):
        if path.is_dir() and not path.is_symlink():
            waste.append(Waste(path, _size(path), "half-written"))
    return Survey(waste, [] if superseded else older)


def _kept(needed: dict[str, ArtifactSpec], found: Sequence[Place], results: Path) -> set[str]:
    """Return the names of artifacts that are needed, or may be.

    What is made from data that were never seen here may be any version.
    """
    kept = set(needed)
    uncertain: set[Kin] = {kin_of(name) for name, item in needed.items() if _is_uncertain(item)}
    kept |= {place.name for place in found if place.kin in uncertain}
    reports = {kin_of(item.folder)[1] for item in needed.values() if item.stage.is_page}
    for name in reports:
        latest = results / "experiments" / name / LATEST
        if latest.is_symlink():
            kept.add(f"{RESULTS}/experiments/{name}/{latest.resolve().name}")
    return kept


def _is_uncertain(planned: ArtifactSpec) -> bool:
    outside = planned.spec.get("outside", {})
    return ABSENT in outside.values() or any(map(_is_uncertain, planned.inputs.values()))


def _superseded(
    needed: dict[str, ArtifactSpec], found: Sequence[Place], kept: set[str], tree: Tree
) -> list[Place]:
    trainings = [name for name, item in needed.items() if item.kind == "stage1"]
    names = {kin_of(name) for name in trainings}
    records = [tree.record(name) for name in trainings if tree.has(name)]
    # What was adopted is there under its new name.
    adopted = {record.manifest.get("adopted", {}).get("from") for record in records if record}
    return [
        place
        for place in found
        if place.kin in names
        and place.name not in kept
        and place.name not in adopted
        and (place.finished or (place.folder / RESUME).is_dir())
    ]


def _made_from(trainings: Sequence[Place], tree: Tree) -> set[str]:
    records = [tree.record(place.name) for place in trainings if place.finished]
    names = {name for record in records if record for name in record.inputs.values()}
    unfinished = [place for place in trainings if not place.finished]
    # Which draw an interrupted training is made from can't be told from its path.
    names |= {
        place.name
        for training in unfinished
        for place in tree.kin.get(("data", training.parts[1]), [])
    }
    return names


def _artifact(place: Place, results: Path) -> Waste:
    if place.digest:
        return Waste(place.folder, _size(place.folder), "artifact")
    # A report of version 0.1.0: today's reports lie in folders beside its files.
    record = Tree(results).record(place.name)
    names = [] if record is None else list(record.manifest["outputs"])
    files = tuple(place.folder / name for name in (*names, MANIFEST))
    there = tuple(path for path in files if path.is_file())
    return Waste(place.folder, sum(path.stat().st_size for path in there), "report", there)


def _half_written(folder: Path) -> Iterator[Waste]:
    for path in sorted(folder.rglob(".*")):
        if is_temporary(path) and path.is_file():
            yield Waste(path, path.stat().st_size, "half-written")


def _changed(item: Waste) -> float:
    return item.path.stat().st_mtime


def _side_files(side: str, results: Path, kept: set[str]) -> Iterator[Waste]:
    """Yield logs or benchmarks of artifacts that are not kept, be these still there or not."""
    for path in sorted((results / side).rglob(f"*{_SIDES[side]}")):
        name = side_name(path.relative_to(results / side).as_posix())
        is_waste = name is not None and name not in kept and path.is_file()
        if is_waste and not _has_links(path, results):
            yield Waste(path, path.stat().st_size, side)


def _plans(results: Path) -> Iterator[Waste]:
    """Yield the plans of all runs but the last."""
    plans = sorted((results / "plans").glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
    for path in plans[:-1]:
        yield Waste(path, path.stat().st_size, "plan")


def remove(waste: Sequence[Waste], results: Path) -> None:
    """Delete what `find_waste` found, and the folders that it leaves empty.

    A folder's manifest goes first, so that one that is half gone is never taken for whole.

    Raises:
        InputError: a run is at work here, something lies outside `results`, or the system refuses;
            names what to do.
    """
    if not is_tree(results):
        raise InputError(f"{results}: no results folder")
    root = results.resolve()
    for item in waste:
        inside = item.path.parent.resolve().is_relative_to(root)
        if not inside or item.path.is_symlink():
            raise InputError(f"{item.path}: lies outside {results}; nothing is removed")
    with held(results):
        for item in waste:
            _remove(item, root)


def _remove(item: Waste, root: Path) -> None:
    try:
        if item.files:
            for path in reversed(item.files):
                path.unlink(missing_ok=True)
                _remove_empty_parents(path.parent, root)
            for folder in filter(Path.is_dir, list(item.path.glob("*"))):
                _remove_empty_parents(folder, item.path)
        elif item.path.is_dir():
            (item.path / MANIFEST).unlink(missing_ok=True)
            shutil.rmtree(item.path)
        else:
            item.path.unlink(missing_ok=True)
        if item.path.parent.parent.name == "experiments":
            _unpublish(item.path)
    except OSError as error:
        raise InputError(f"{item.path}: can't be removed ({error.strerror})") from None
    _remove_empty_parents(item.path.parent, root)


def _unpublish(report: Path) -> None:
    """Remove the mark of a report that is gone, and the link that led to it."""
    (report.parent / "published" / report.name).unlink(missing_ok=True)
    latest = report.parent / LATEST
    if latest.is_symlink() and not latest.exists():
        latest.unlink()
    _remove_empty_parents(report.parent / "published", report.parent)


def _remove_empty_parents(folder: Path, root: Path) -> None:
    while folder.resolve() != root.resolve():
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
