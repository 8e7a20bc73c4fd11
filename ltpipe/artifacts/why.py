"""Why an artifact is what it is, and why one that is not there will be made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ltpipe.artifacts.adopt import duration
from ltpipe.artifacts.earlier import Record, read_record
from ltpipe.artifacts.relatives import Relative, Tree, nearest, shortened
from ltpipe.artifacts.tree import Place, find_tree, kin_of, place_of
from ltpipe.artifacts.unfinished import read_unfinished
from ltpipe.config.base import canonical_json
from ltpipe.plan.availability import judge
from ltpipe.plan.code import code_identity
from ltpipe.plan.entries import code_entries
from ltpipe.plan.layout import ArtifactSpec
from ltpipe.plan.stages import RESULTS, STAGES
from ltpipe.plan.workload import load_workload
from ltpipe.utils.errors import InputError

_NOTHING = "nothing of its names and seed is there"


def explain(path: Path, experiments: Sequence[Path], catalogue: Path | None) -> list[str]:
    """Return lines on `path`: an experiment file, or an artifact or something in one.

    Of an experiment, what is missing and why, grouped, in the order in which it will be made. Of an
    artifact that is there, what it was made from, and whether the experiments ask for it or for
    what instead. Of one that is not there, what its nearest relative differs in.

    Raises:
        InputError: no artifact is there, and no experiment asks for one there.
    """
    if path.suffix in (".yaml", ".yml") and not path.is_dir():
        return [*_explain_missing(_planned([path, *experiments], catalogue), Tree(Path(RESULTS)))]
    planned = _planned(experiments, catalogue)
    folder, place = _locate(path)
    tree = Tree(folder)
    asked = planned.get(place.name)
    if place.finished:
        record = read_record(place)
        lines = [*_origin(record), "", *_code_since(record)]
        return [*lines, *_wanted(record, asked, planned, tree)] if experiments else lines
    if asked is None:
        known = "" if experiments else "; name the experiment file that should need it"
        raise InputError(f"{path}: there is no finished artifact{known}")
    return [*_explain_one(asked, tree)]


def _planned(experiments: Sequence[Path], catalogue: Path | None) -> dict[str, ArtifactSpec]:
    loads = [load_workload(file, catalogue, judge) for file in experiments]
    return {folder: item for load in loads for folder, item in load.everything.items()}


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


# ---- an artifact that is there ---------------------------------------------------------------


def _origin(record: Record) -> Iterator[str]:
    spec, manifest = record.spec, record.manifest
    yield f"{record.place.name}: {spec['kind']}"
    yield "made from"
    if not STAGES[spec["kind"]].is_page:
        for key, value in sorted(record.settings.items()):
            yield f"  {key}: {canonical_json(value)}"
    for role, contents in (record.outside or {}).items():
        yield f"  outside {role}: {contents[:10]}"
    yield f"  code {record.code}: {len(manifest['modules'])} modules"
    for role, name in record.inputs.items():
        yield f"  {name}" if role == name else f"  {role}: {name}"
    if adopted := manifest.get("adopted"):
        yield (
            f"adopted on {adopted['date'][:10]} from {adopted['from']}, which code "
            f"{adopted['code']} made"
        )
    versions = ", ".join(f"{name} {value}" for name, value in manifest["versions"].items())
    yield f"by {versions}"
    yield f"on {manifest.get('device', 'no device')}, in {duration(record.hours)}"


def _code_since(record: Record) -> Iterator[str]:
    if record.is_earlier:
        yield "version 0.1.0 made it; `ltpipe adopt EXPERIMENT.yaml` takes such artifacts over"
        return
    try:
        now = code_identity(code_entries(record.spec))
    except InputError as error:
        yield f"its code is not known here: {error}"
        return
    changed = f"has changed since (now {now}), so artifacts made now lie under other digests"
    yield f"its code {'is as it was' if now == record.code else changed}"


def _wanted(
    record: Record, asked: ArtifactSpec | None, planned: Mapping[str, ArtifactSpec], tree: Tree
) -> Iterator[str]:
    if asked is not None:
        yield f"the experiment asks for it: {asked.title}"
        return
    yield "no experiment named here asks for it"
    for item in planned.values():
        if kin_of(item.folder) == record.place.kin:
            yield f"in its place stands {item.folder}, which differs in"
            yield from (f"  {line}" for line in tree.compare(record, item).lines())


# ---- artifacts that are not there ------------------------------------------------------------


def _explain_one(planned: ArtifactSpec, tree: Tree) -> Iterator[str]:
    yield f"{planned.folder}: {_state(planned, tree)}; it will be made: {planned.title}"
    if not planned.stage.is_page:
        for role, needed in planned.inputs.items():
            yield f"  {role}: {needed.folder} ({_state(needed, tree)})"
    relative = nearest(planned, tree)
    if relative is None:
        yield _NOTHING
        return
    yield f"its nearest relative that is there, {relative.place.name}, differs in"
    yield from (f"  {line}" for line in relative.lines())
    yield from _adoptable(relative)


def _state(planned: ArtifactSpec, tree: Tree) -> str:
    if tree.has(planned.folder):
        return "there"
    folder = tree.place(planned.folder).folder
    begun = read_unfinished(folder)
    if begun is not None:
        return f"interrupted after {begun.epochs} epochs"
    return "not finished" if folder.is_dir() and any(folder.iterdir()) else "not there"


def _adoptable(relative: Relative) -> Iterator[str]:
    if relative.only_code and not relative.planned.stage.is_page:
        yield (
            f"only code differs: `ltpipe adopt` takes it over ({duration(relative.record.hours)} "
            "to make)"
        )


def _explain_missing(planned: Mapping[str, ArtifactSpec], tree: Tree) -> Iterator[str]:
    order = list(STAGES)
    missing = [item for item in planned.values() if not tree.has(item.folder)]
    if not missing:
        yield f"nothing is missing: all {len(planned)} artifacts are there"
        return
    yield f"{len(missing)} of {len(planned)} artifacts are missing and will be made"
    groups: dict[tuple[str, tuple[str, ...]], list[ArtifactSpec]] = {}
    for item in sorted(missing, key=lambda item: order.index(item.kind)):
        groups.setdefault((item.kind, tuple(_reasons(item, tree))), []).append(item)
    for (kind, reasons), items in groups.items():
        yield f"{kind}: {len(items)}"
        yield from (f"  {line}" for line in shortened([item.folder for item in items], 3))
        yield from (f"    {line}" for line in reasons)


def _reasons(planned: ArtifactSpec, tree: Tree) -> Iterator[str]:
    """Yield why an artifact is missing; why its inputs are is said where they are listed."""
    state = _state(planned, tree)
    if state != "not there":
        yield state
    relative = nearest(planned, tree)
    if relative is None:
        yield _NOTHING
        return
    yield from shortened(relative.own)
    yield from shortened(list(_other_inputs(relative, tree)))
    yield from _adoptable(relative)


def _other_inputs(relative: Relative, tree: Tree) -> Iterator[str]:
    if relative.planned.stage.is_page:
        if relative.inputs:
            yield f"{len(relative.inputs)} of what it shows are others"
        return
    for item in relative.inputs:
        if item.planned is None:
            yield f"not made from {item.role} any more"
        elif not tree.has(item.planned.folder):
            yield f"made from {item.role}, which will be made"
        else:
            yield f"made from {item.role}, which is another: {item.planned.folder}"
