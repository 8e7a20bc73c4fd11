"""What an artifact was made from, and what exactly would make it be rebuilt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ltpipe.artifacts.changes import Artifacts, differences
from ltpipe.artifacts.manifest import MANIFEST, read_manifest
from ltpipe.artifacts.tree import DEPTHS, Place, find_tree, place_of, places, recorded_place
from ltpipe.config.base import canonical_json
from ltpipe.plan.availability import judge
from ltpipe.plan.layout import RESULTS, Cell
from ltpipe.plan.workload import load_workload
from ltpipe.utils.errors import InputError


def explain_artifact(path: Path, experiments: Sequence[Path], catalogue: Path | None) -> list[str]:
    """Return lines on the artifact that `path` is or is part of.

    They say what it was made from; whether it would be rebuilt as things are, and by what: code,
    inputs, files; and, given experiment files, what they ask for in its place: each setting that
    differs, old and new.

    Raises:
        InputError: no artifact is there, and no experiment asks for one there.
    """
    loads = [load_workload(file, catalogue, judge) for file in experiments]
    cells = {folder: cell for load in loads for folder, cell in load.everything.items()}
    tree, place = _locate(path)
    asked = cells.get(place.name)
    if not place.finished:
        if asked is None:
            known = "" if experiments else "; name the experiment file that should need it"
            raise InputError(f"{path}: there is no finished artifact{known}")
        return [*_unfinished(asked, place), *_siblings(asked, tree)]
    manifest = read_manifest(place.folder)
    artifacts = Artifacts(tree.parent)
    recorded = _recorded_cell(place, manifest)
    lines = [*_origin(place, manifest), "", *_verdict(artifacts, recorded, asked or recorded)]
    if experiments:
        lines += ["", *_wanted(place, manifest, asked, list(cells.values()))]
    return lines


def _locate(path: Path) -> tuple[Path, Place]:
    """Return the results folder and the artifact; the artifact itself need not be there."""
    existing = path
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    parts = path.parts
    if existing != path and RESULTS in parts and RESULTS not in existing.parts:
        # Nothing was ever run here.
        at = len(parts) - 1 - parts[::-1].index(RESULTS)
        tree = Path(*parts[: at + 1])
    else:
        tree = find_tree(existing)
    return tree, place_of(path, tree)


def _recorded_cell(place: Place, manifest: dict[str, Any]) -> Cell:
    """Return the plan's cell as the artifact itself remembers it."""
    inputs = {
        role: Cell(kind="", folder=recorded_place(entry["path"]), title="", spec={})
        for role, entry in manifest["inputs"].items()
    }
    spec = manifest["spec"]
    return Cell(kind=spec["kind"], folder=place.name, title="", spec=spec, inputs=inputs)


def _origin(place: Place, manifest: dict[str, Any]) -> Iterator[str]:
    spec = manifest["spec"]
    yield f"{place.name}: {spec['kind']}"
    yield "made from"
    for key in sorted(spec):
        if key != "kind" and spec["kind"] not in ("report", "overview"):
            yield f"  {key}: {canonical_json(spec[key])}"
    yield f"  code {manifest['code']}: {len(manifest['modules'])} modules"
    for role, entry in manifest["inputs"].items():
        yield f"  {role}: {recorded_place(entry['path'])}"
    for name, sha256 in manifest.get("files", {}).items():
        yield f"  file {name}: SHA-256 {sha256[:16]}..."
    versions = ", ".join(f"{name} {value}" for name, value in manifest["versions"].items())
    yield f"by {versions}"
    yield f"on {manifest.get('device', 'no device')}, in {manifest.get('wall_s', '?')} s"


def _verdict(artifacts: Artifacts, recorded: Cell, cell: Cell) -> Iterator[str]:
    changes = list(artifacts.changes(cell))
    above = list(_above(artifacts, recorded, set()))
    if not changes and not above:
        yield "nothing would make it be rebuilt: settings, code and inputs are as they were"
        return
    yield "it would be rebuilt, because"
    for line in changes:
        yield f"  {line}"
    for name, line in above:
        yield f"  {name}: {line}"


def _above(artifacts: Artifacts, cell: Cell, seen: set[str]) -> Iterator[tuple[str, str]]:
    """Yield what has changed in what the artifact is made from, step by step upwards."""
    for needed in cell.inputs.values():
        if needed.folder in seen:
            continue
        seen.add(needed.folder)
        folder = artifacts.base / needed.folder
        try:
            inner = _recorded_cell(Place(folder, needed.folder), read_manifest(folder))
        except InputError as error:
            yield needed.folder, str(error).removeprefix(f"{folder / MANIFEST}: ")
            continue
        for line in artifacts.changes(inner):
            yield needed.folder, line
        yield from _above(artifacts, inner, seen)


def _wanted(
    place: Place, manifest: dict[str, Any], asked: Cell | None, cells: Sequence[Cell]
) -> Iterator[str]:
    if asked is not None:
        yield f"the experiment asks for it: {asked.title}"
        return
    yield "no experiment named here asks for it"
    near = [cell for cell in cells if _kinship(cell.folder) == _kinship(place.name)]
    for cell in near:
        yield f"in its place stands {cell.folder}"
        for line in _differing(manifest["spec"], cell.spec):
            yield f"  {line}"


def _unfinished(cell: Cell, place: Place) -> Iterator[str]:
    half = place.folder.is_dir() and any(place.folder.iterdir())
    yield f"{cell.folder}: {'not finished' if half else 'not there'}; it will be made: {cell.title}"
    for role, needed in cell.inputs.items():
        yield f"  {role}: {needed.folder}"


def _siblings(cell: Cell, tree: Path) -> Iterator[str]:
    """Say what differs from artifacts of the same names and seed that are there."""
    for place in places(tree):
        if place.finished and _kinship(place.name) == _kinship(cell.folder):
            yield f"{place.name} is there and differs in"
            for line in _differing(read_manifest(place.folder)["spec"], cell.spec):
                yield f"  {line}"


def _kinship(folder: str) -> tuple[str, ...]:
    """Return an artifact's stage, names and seed: all of its path but the digest."""
    parts = folder.split("/")
    at = len(parts) - 1 if DEPTHS[parts[1]] == 2 else len(parts) - 2
    return (*parts[:at], *parts[at + 1 :])


def _differing(old: Any, new: Any) -> Iterator[str]:
    for path, before, after in differences(old, new):
        yield f"setting {path}: {before} -> {after}"
