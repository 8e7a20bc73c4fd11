"""Artifacts of older code taken over on a person's word, without computing anything.

What differs from the plan in code alone, in itself and in all that it was made from, is linked to
the path that the plan gives it; so are trainings that were interrupted. Whether the older code
computes the same is for whoever says so: the new manifest keeps that it was adopted, and from what.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ltpipe import __version__
from ltpipe.artifacts.earlier import FORMAT as EARLIER
from ltpipe.artifacts.earlier import Record, modern_spec
from ltpipe.artifacts.job import run_identity
from ltpipe.artifacts.manifest import FORMAT, content_of, write_sealed
from ltpipe.artifacts.relatives import Relative, Tree, nearest, shortened
from ltpipe.artifacts.tree import Place
from ltpipe.artifacts.unfinished import Unfinished, bind, checkpoint_in, read_unfinished
from ltpipe.plan.layout import ArtifactSpec
from ltpipe.plan.specs import with_locations
from ltpipe.plan.stages import STAGES
from ltpipe.utils.errors import InputError
from ltpipe.utils.io import file_sha256
from ltpipe.utils.lock import held

KINDS = tuple(kind for kind, stage in STAGES.items() if not stage.is_page)


@dataclass(frozen=True)
class Step:
    """What is done about one artifact that is missing.

    Attributes:
        source: the artifact that is taken over; None where none can be.
        hours: how long that took to make.
        notes: what is to be known of it, or what stands against taking over, a line each.
    """

    planned: ArtifactSpec
    source: Place | None
    hours: float
    notes: tuple[str, ...]


def adopt(
    artifacts: Mapping[str, ArtifactSpec],
    results: Path,
    kinds: Collection[str] = KINDS,
    dry_run: bool = False,
) -> Iterator[Step]:
    """Take over what `artifacts`, those of a plan, lack and older code made; upstream first.

    Yields a step for each artifact that is missing and has a relative. Of `kinds` and of what these
    are made from alone. Nothing of the older artifacts changes.

    Raises:
        InputError: another process works in the results folder.
    """
    tree = Tree(results)
    chosen = _upstream_first([item for item in artifacts.values() if item.kind in kinds])
    with contextlib.nullcontext() if dry_run else held(results):
        for planned in chosen:
            if not tree.has(planned.folder):
                step = _finished(planned, tree, dry_run) or _begun(planned, tree, dry_run)
                step = step or _left(planned, tree)
                if step is not None:
                    yield step


def _upstream_first(wanted: list[ArtifactSpec]) -> list[ArtifactSpec]:
    found: dict[str, ArtifactSpec] = {}

    def visit(planned: ArtifactSpec) -> None:
        if planned.folder not in found:
            for needed in planned.inputs.values():
                visit(needed)
            found[planned.folder] = planned

    for planned in wanted:
        visit(planned)
    return list(found.values())


# ---- finished artifacts ----------------------------------------------------------------------


def _finished(planned: ArtifactSpec, tree: Tree, dry_run: bool) -> Step | None:
    """Take over the newest relative that differs in code alone; None where there is none."""
    for place in tree.relatives(planned):
        record = tree.record(place.name)
        relative = tree.compare(record, planned) if record is not None else None
        if record is None or relative is None or not relative.only_code:
            continue
        trouble = _inputs_missing(relative, tree) or _damage(record, planned, quick=dry_run)
        if trouble:
            return Step(planned, None, record.hours, (f"{place.name}: {trouble}",))
        manifest = _manifest(relative, tree)
        tree.take(planned.folder, Record(tree.place(planned.folder), manifest, planned.spec))
        if not dry_run:
            _link(record, planned, tree, manifest)
        return Step(planned, place, record.hours, tuple(_notes(relative)))
    return None


def _inputs_missing(relative: Relative, tree: Tree) -> str:
    missing = [
        item.planned.folder
        for item in relative.inputs
        if item.planned is not None and not tree.has(item.planned.folder)
    ]
    return f"what it is made from has to be made first: {', '.join(missing)}" if missing else ""


def _damage(record: Record, planned: ArtifactSpec, quick: bool) -> str:
    """Say what is wrong with the files of an artifact; `quick` looks whether they are there."""
    outputs = record.manifest["outputs"]
    for name in planned.stage.files:
        if name not in outputs:
            return f"it has no {name}"
    for name, expected in outputs.items():
        path = record.place.folder / name
        if not path.is_file():
            return f"{name} is missing"
        if not quick and file_sha256(path) != expected:
            return f"{name} is damaged (its SHA-256 differs)"
    return ""


def _manifest(relative: Relative, tree: Tree) -> dict[str, Any]:
    """Return the manifest of the adopted artifact: all of the older one's run, and whence it is."""
    record, planned = relative.record, relative.planned
    old = record.manifest
    inputs = {}
    for role, needed in planned.inputs.items():
        there = tree.record(needed.folder)
        known = old["inputs"][role].get("content") if there is None else content_of(there.manifest)
        inputs[role] = {"path": needed.folder, "content": known}
    # Where version 0.1.0 had what belongs into specs now.
    gone = ("code", "files") if record.is_earlier else ()
    run = {key: value for key, value in old.items() if key not in gone}
    return {
        **run,
        "format": FORMAT,
        "spec": planned.spec,
        "modules": dict(tree.modules(planned)),
        "inputs": inputs,
        "adopted": {
            "from": record.place.name,
            "code": record.code,
            "differs": relative.modules,
            "date": _now(),
            "by": f"ltpipe {__version__}",
            **({"earlier": old["adopted"]} if "adopted" in old else {}),
        },
    }


def _link(record: Record, planned: ArtifactSpec, tree: Tree, manifest: dict[str, Any]) -> None:
    target = tree.place(planned.folder).folder
    if target.is_symlink():
        raise InputError(f"{target}: a link; remove it")
    # Whatever an interrupted job left there.
    shutil.rmtree(target, ignore_errors=True)
    for name in record.manifest["outputs"]:
        path = target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link((record.place.folder / name).resolve(), path)
        except OSError:
            shutil.copyfile(record.place.folder / name, path)
    write_sealed(target, manifest)


def _notes(relative: Relative) -> Iterator[str]:
    if relative.record.is_earlier and "outside" in relative.planned.spec:
        yield (
            "which files from outside it was made from was not recorded by version 0.1.0; that "
            "they are those that are there now is on your word"
        )
    yield from shortened(relative.modules)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


# ---- trainings that were interrupted ---------------------------------------------------------


def _begun(planned: ArtifactSpec, tree: Tree, dry_run: bool) -> Step | None:
    """Take over the interrupted training that came furthest; None where there is none."""
    target = tree.place(planned.folder).folder
    if planned.kind != "stage1" or read_unfinished(target) is not None:
        return None
    best: tuple[Relative, Unfinished] | None = None
    for place in tree.relatives(planned):
        found = None if place.finished else read_unfinished(place.folder)
        if found is not None and (best is None or found.epochs > best[1].epochs):
            relative = _as_if_finished(place, found, planned, tree)
            if relative.only_code and not _inputs_missing(relative, tree):
                best = relative, found
    if best is None:
        return None
    relative, found = best
    data = tree.record(planned.inputs["data"].folder)
    if data is None or data.manifest.get("draw") != found.draw:
        return None
    if not dry_run:
        target.mkdir(parents=True, exist_ok=True)
        spec = with_locations(planned.spec)
        bind(found.path, checkpoint_in(target), run_identity(spec, found.draw, found.processes))
    note = f"interrupted after {found.epochs} epochs, from which it goes on"
    return Step(planned, relative.place, found.seconds / 3600, (note,))


def _as_if_finished(place: Place, found: Unfinished, planned: ArtifactSpec, tree: Tree) -> Relative:
    """Return in what a training differs that has no manifest yet."""
    spec = found.spec
    is_earlier = "inputs" not in spec
    if is_earlier:
        spec = {**modern_spec(spec), "code": found.code}
    else:
        # Jobs are told where files lie within the settings.
        spec = _without(spec, planned.spec.get("locations", {}))
    used = _used_data(planned.inputs["data"], found, spec, tree)
    inputs = {}
    if used is not None:
        inputs["data"] = {"path": used.place.name, "content": content_of(used.manifest)}
    manifest = {"format": EARLIER if is_earlier else FORMAT, "inputs": inputs, "modules": {}}
    return tree.compare(Record(place, {**manifest, "spec": spec, "outputs": {}}, spec), planned)


def _used_data(
    data: ArtifactSpec, found: Unfinished, spec: Mapping[str, Any], tree: Tree
) -> Record | None:
    """Return the draw that an interrupted training is made from, if it is still there."""
    there = tree.record(data.folder)
    candidates = [there, *(tree.record(place.name) for place in tree.relatives(data))]
    for record in candidates:
        if record is None or record.manifest.get("draw") != found.draw:
            continue
        if record.place.digest == spec.get("inputs", {}).get("data", record.place.digest):
            return record
    return None


def _without(spec: Mapping[str, Any], locations: Mapping[str, Any]) -> dict[str, Any]:
    whole = dict(spec)
    for section, located in locations.items():
        if isinstance(whole.get(section), Mapping):
            whole[section] = {k: v for k, v in whole[section].items() if k not in located}
    return whole


# ---- the rest --------------------------------------------------------------------------------


def _left(planned: ArtifactSpec, tree: Tree) -> Step | None:
    """Say what stands against taking over the nearest relative; None where there is none."""
    relative = nearest(planned, tree)
    if relative is None:
        return None
    lines = [f"differs from {relative.place.name} in", *shortened(relative.obstacles())]
    return Step(planned, None, relative.record.hours, tuple(lines))


def dear_trainings(
    artifacts: Mapping[str, ArtifactSpec], results: Path, experiment: Path
) -> list[str]:
    """Return lines on finished trainings that would be made again because of code alone.

    They name the command that takes them over for `experiment`, the file that asks for them. Other
    artifacts are looked at only where a planned training is missing.
    """
    tree = Tree(results)
    found: dict[str, float] = {}
    for planned in artifacts.values():
        if planned.kind == "stage1" and not tree.has(planned.folder):
            relative = nearest(planned, tree)
            if relative is not None and relative.only_code:
                found[relative.place.name] = relative.record.hours
    if not found:
        return []
    what = "1 finished training" if len(found) == 1 else f"{len(found)} finished trainings"
    lines = [f"{name} ({duration(hours)})" for name, hours in found.items()]
    return [
        f"{what} ({duration(sum(found.values()))}) will be made again because of code alone; "
        f"`ltpipe adopt {experiment}` takes over what older code made:",
        *(f"  {line}" for line in shortened(lines)),
    ]


def duration(hours: float) -> str:
    """Return a time in hours, or in minutes or seconds where it is short."""
    if hours >= 1:
        return f"{hours:.1f} h"
    return f"{60 * hours:.0f} min" if hours >= 1 / 60 else f"{3600 * hours:.1f} s"
