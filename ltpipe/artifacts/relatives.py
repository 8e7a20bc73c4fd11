"""What stands between an artifact that is planned and its nearest relative that is there.

Relatives have the stage, the names and the seed in common. They differ in settings, in code, in
files from outside or in what they are made from.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ltpipe.artifacts.earlier import Record, read_record, settings_in
from ltpipe.artifacts.manifest import content_of, outputs_of
from ltpipe.artifacts.tree import Kin, Place, kin_of, places
from ltpipe.config.base import canonical_json
from ltpipe.plan.code import code_modules
from ltpipe.plan.contents import ABSENT
from ltpipe.plan.entries import code_entries
from ltpipe.plan.fingerprints import recorded_files
from ltpipe.plan.layout import ArtifactSpec
from ltpipe.plan.stages import MANIFEST
from ltpipe.utils.errors import InputError

_LISTED = 5
_MADE_AGAIN = "was made again since and came out otherwise"


class Tree:
    """The artifacts of a results folder; what is read once is kept."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._records: dict[str, Record | None] = {}
        self._files: dict[str, Mapping[str, str] | None] = {}
        self._modules: dict[tuple[str | Path, ...], dict[str, str]] = {}
        self._compared: dict[tuple[str, str], Relative] = {}
        self._taken: set[str] = set()

    @cached_property
    def kin(self) -> dict[Kin, list[Place]]:
        """The artifacts by stage, names and seed, finished or not."""
        found: dict[Kin, list[Place]] = {}
        for place in places(self.folder):
            found.setdefault(place.kin, []).append(place)
        return found

    def place(self, name: str) -> Place:
        """Return where the artifact that plans call `name` lies, or would lie."""
        return Place(self.folder.joinpath(*Path(name).parts[1:]), name)

    def has(self, name: str) -> bool:
        """Return whether that artifact is finished, or taken for finished."""
        return name in self._taken or self.place(name).finished

    def take(self, name: str, record: Record) -> None:
        """Take an artifact for finished, with this record."""
        self._taken.add(name)
        self._records[name] = record

    def record(self, name: str) -> Record | None:
        """Return what the manifest of that artifact says; None if it is missing or damaged."""
        if name not in self._records:
            try:
                self._records[name] = read_record(self.place(name))
            except InputError:
                self._records[name] = None
        return self._records[name]

    def relatives(self, planned: ArtifactSpec) -> list[Place]:
        """Return the places of its kin, the last one that was made first.

        Version 0.1.0 gave a seed to all networks and to imported embeddings.
        """
        kin = kin_of(planned.folder)
        found = self.kin.get(kin, [])
        if planned.stage.folder in ("stage1", "features") and "seed" not in planned.spec:
            found = [*found, *self.kin.get((*kin, "seed0"), [])]
        others = [place for place in found if place.name != planned.folder]
        return sorted(others, key=_age)

    def files(self, digest: str) -> Mapping[str, str] | None:
        """Return the hashes behind a fingerprint, as they were recorded; None if they were not."""
        if digest not in self._files:
            try:
                recorded = recorded_files(self.folder / "fingerprints", digest)
                self._files[digest] = recorded.files
            except InputError:
                self._files[digest] = None
        return self._files[digest]

    def modules(self, planned: ArtifactSpec) -> Mapping[str, str]:
        """Return the hashes of the modules behind a planned artifact, by name."""
        entries = code_entries(planned.spec)
        if entries not in self._modules:
            self._modules[entries] = code_modules(entries)
        return self._modules[entries]

    def compare(self, record: Record, planned: ArtifactSpec) -> Relative:
        """Return in what `planned` differs from an artifact that is there."""
        key = record.place.name, planned.folder
        if key not in self._compared:
            self._compared[key] = _compare(record, planned, self)
        return self._compared[key]


def _age(place: Place) -> float:
    try:
        return -(place.folder / MANIFEST).stat().st_mtime
    except OSError:
        return 0.0


@dataclass(frozen=True)
class Input:
    """An input that is another: its role, what was used, what is planned, and what differs."""

    role: str
    used: str | None
    planned: ArtifactSpec | None
    relative: Relative | None = None
    trouble: str = ""


@dataclass(frozen=True)
class Relative:
    """An artifact that is there, and in what the planned one differs from it, a line each."""

    record: Record
    planned: ArtifactSpec
    tree: Tree = field(repr=False)
    settings: list[str]
    outside: list[str]
    inputs: list[Input] = field(default_factory=list)

    @property
    def place(self) -> Place:
        """Where it lies."""
        return self.record.place

    @property
    def has_other_code(self) -> bool:
        """Whether other code made it."""
        return self.record.code != self.planned.spec["code"]

    @cached_property
    def modules(self) -> list[str]:
        """The modules in which the code differs, a line each."""
        return _module_lines(self) if self.has_other_code else []

    @property
    def own(self) -> list[str]:
        """All lines but those on what it is made from."""
        return [*self.settings, *self.outside, *self.modules]

    @property
    def only_code(self) -> bool:
        """Whether nothing but code differs, in it and in all that it was made from."""
        return not (self.settings or self.outside) and all(
            not item.trouble and item.relative is not None and item.relative.only_code
            for item in self.inputs
        )

    def distance(self) -> tuple[bool, int, int]:
        """Return how far it is from what is planned, for sorting."""
        return (
            not self.only_code,
            len(self.settings) + len(self.outside),
            len(self.inputs),
        )

    def lines(self, seen: set[str] | None = None) -> Iterator[str]:
        """Yield all that differs; what an input differs in follows it, indented."""
        seen = set() if seen is None else seen
        yield from self.own
        for item in self.inputs:
            yield _input_line(item)
            if item.planned is None or item.planned.folder in seen or item.relative is None:
                continue
            seen.add(item.planned.folder)
            yield from (f"  {line}" for line in item.relative.lines(seen))

    def obstacles(self) -> list[str]:
        """Return what differs besides code, here and in all that it was made from."""
        found = [*self.settings, *self.outside]
        for item in self.inputs:
            if item.relative is None or item.trouble:
                found.append(_input_line(item))
            else:
                found += [f"{item.role}: {line}" for line in item.relative.obstacles()]
        return list(dict.fromkeys(found))


def nearest(planned: ArtifactSpec, tree: Tree) -> Relative | None:
    """Return the finished artifact of the same stage, names and seed that differs least."""
    return min(compared(planned, tree), key=Relative.distance, default=None)


def compared(planned: ArtifactSpec, tree: Tree) -> Iterator[Relative]:
    """Yield every finished relative of a planned artifact, the last one that was made first."""
    for place in tree.relatives(planned):
        record = tree.record(place.name)
        if record is not None:
            yield tree.compare(record, planned)


def _compare(record: Record, planned: ArtifactSpec, tree: Tree) -> Relative:
    old, new = record.settings, settings_in(planned.spec)
    if planned.stage.is_page:
        old, new = _without_digests(old), _without_digests(new)
    return Relative(
        record,
        planned,
        tree,
        settings=[f"setting {path}: {a} -> {b}" for path, a, b in differences(old, new)],
        outside=_outside_lines(record, planned, tree),
        inputs=_input_differences(record, planned, tree),
    )


def _input_differences(record: Record, planned: ArtifactSpec, tree: Tree) -> list[Input]:
    if planned.stage.is_page:
        # Pages show their inputs by name, and the rows of their settings say which.
        return [
            Input("shown", None, needed)
            for name, needed in planned.inputs.items()
            if name not in record.inputs.values() and needed.kind in ("stage2", "report")
        ]
    found = []
    for role, needed in planned.inputs.items():
        used = record.inputs.get(role)
        if used is None:
            found.append(Input(role, None, needed, trouble="it was made without one"))
        elif used != needed.folder:
            found.append(_compare_input(record, role, used, needed, tree))
        elif _was_made_again(record, role, tree.record(used)):
            found.append(Input(role, used, needed, trouble=_MADE_AGAIN))
    for role in record.inputs.keys() - planned.inputs.keys():
        found.append(Input(role, record.inputs[role], None, trouble="it is asked for no more"))
    return found


def _compare_input(record: Record, role: str, used: str, needed: ArtifactSpec, tree: Tree) -> Input:
    before = tree.record(used)
    if before is None:
        return Input(role, used, needed, trouble=f"{used} is not there any more")
    if _was_made_again(record, role, before):
        return Input(role, used, needed, trouble=f"{used} {_MADE_AGAIN}")
    now = tree.record(needed.folder)
    trouble = ""
    if now is not None and outputs_of(now.manifest) != outputs_of(before.manifest):
        trouble = f"{needed.folder} was made since, with other contents than {used}"
    return Input(role, used, needed, tree.compare(before, needed), trouble)


def _was_made_again(record: Record, role: str, used: Record | None) -> bool:
    recorded = record.manifest["inputs"][role].get("content")
    return used is not None and content_of(used.manifest) != recorded


def _input_line(item: Input) -> str:
    if item.planned is None:
        return f"input {item.role}: {item.trouble}"
    line = f"input {item.role}: {item.planned.folder}"
    return f"{line} ({item.trouble})" if item.trouble else line


def differences(old: Any, new: Any, path: str = "") -> Iterator[tuple[str, str, str]]:
    """Yield the dotted path, the old and the new text of every setting that differs."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in sorted({*old, *new}):
            inner = f"{path}.{key}" if path else str(key)
            yield from differences(old.get(key), new.get(key), inner)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new) and path:
        if any(isinstance(value, Mapping) for value in old):
            for number, pair in enumerate(zip(old, new, strict=True)):
                yield from differences(*pair, f"{path}[{number}]")
        elif old != new:
            yield path, _shown(old), _shown(new)
    elif old != new:
        yield path or "at the top", _shown(old), _shown(new)


def _shown(value: Any) -> str:
    if value is None:
        return "not set"
    text = canonical_json(value)
    return text if len(text) <= 200 else f"{text[:197]}..."


def _without_digests(value: Any) -> Any:
    """Return a page's settings with folders of artifacts named by stage and names alone."""
    if isinstance(value, Mapping):
        return {key: _without_digests(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_digests(inner) for inner in value]
    if isinstance(value, str) and value.startswith("results/"):
        # The seed stands in the row as well.
        return "/".join(part for part in kin_of(value) if not part.startswith("seed"))
    return value


def _module_lines(relative: Relative) -> list[str]:
    record = relative.record
    if record.is_earlier:
        return ["code: that of version 0.1.0, which hashed its modules in another way"]
    if not record.manifest["modules"]:
        return [f"code: {record.code} -> {relative.planned.spec['code']}"]
    old, new = record.manifest["modules"], relative.tree.modules(relative.planned)
    # A module that only moved counts for nothing.
    gone, came = set(old.values()) - set(new.values()), set(new.values()) - set(old.values())
    lines = []
    for name in sorted({*old, *new}):
        if name in old and name in new:
            if old[name] != new[name]:
                lines.append(f"module {name}: changed")
        elif name in new and new[name] in came:
            lines.append(f"module {name}: new")
        elif name in old and old[name] in gone:
            lines.append(f"module {name}: used no more")
    return lines or ["code: the same modules, put together in another way"]


def _outside_lines(record: Record, planned: ArtifactSpec, tree: Tree) -> list[str]:
    new = planned.spec.get("outside", {})
    old = record.outside
    if old is None:
        # What version 0.1.0 had in its hands is known of imported embeddings alone.
        if ABSENT in new.values():
            return ["files from outside: not there, and not recorded by version 0.1.0"]
        return _hash_lines(record.manifest.get("files", {}), new, tree)
    lines: list[str] = []
    for role in sorted({*old, *new}):
        if old.get(role) != new.get(role):
            lines += _changed_files(role, old.get(role, ""), new.get(role, ""), tree)
    return lines


def _hash_lines(recorded: Mapping[str, str], new: Mapping[str, str], tree: Tree) -> list[str]:
    known = [tree.files(digest) for digest in new.values()]
    hashes = {value for files in known if files is not None for value in files.values()}
    changed = [name for name, value in recorded.items() if value not in hashes]
    return [f"file {name}: changed" for name in changed] if None not in known else []


def _changed_files(role: str, old: str, new: str, tree: Tree) -> list[str]:
    if ABSENT in (old, new):
        which = "not there now" if new == ABSENT else "not there when it was made"
        return [f"files from outside ({role}): {which}"]
    before, now = tree.files(old), tree.files(new)
    if before is None or now is None:
        return [
            f"files from outside ({role}): contents {old[:10] or 'none'} -> {new[:10] or 'none'}"
        ]
    lines = [
        f"file {name}: changed" for name in now if name in before and before[name] != now[name]
    ]
    lines += [f"file {name}: new" for name in now if name not in before]
    lines += [f"file {name}: gone" for name in before if name not in now]
    return shortened(lines)


def shortened(lines: Sequence[str], most: int = _LISTED) -> list[str]:
    """Return the first few lines, and how many more there are."""
    if len(lines) <= most + 1:
        return list(lines)
    return [*lines[:most], f"and {len(lines) - most:,} more"]
