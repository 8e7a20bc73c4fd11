"""Are finished artifacts still what their manifests say, on this machine or in an archive?"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ltpipe.artifacts.earlier import Record, read_record
from ltpipe.artifacts.manifest import artifact_files, content_of
from ltpipe.artifacts.tree import Place, find_tree, places
from ltpipe.plan.specs import digest_of
from ltpipe.plan.stages import MANIFEST
from ltpipe.utils.errors import InputError
from ltpipe.utils.io import file_sha256


@dataclass
class Findings:
    """What a check found: `wrong` lines need someone, `notes` only tell."""

    artifacts: int = 0
    files: int = 0
    size: int = 0
    wrong: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def verify(path: Path) -> Findings:
    """Check every hash of one artifact, or of all below a results folder or a part of it.

    For each artifact: that the folder's name is the digest of what its manifest says defines it;
    the hash of every file; what it was made from, where that is in the tree. Nothing is written.

    Raises:
        InputError: there are no artifacts here.
    """
    tree = find_tree(path)
    wanted = path.resolve()
    chosen = [place for place in places(tree) if _concerns(place.folder.resolve(), wanted)]
    if not chosen:
        raise InputError(f"{path}: there is no artifact here")
    findings = Findings()
    for place in chosen:
        if not place.finished:
            findings.notes.append(f"{place.name}: not finished (no {MANIFEST})")
            continue
        findings.artifacts += 1
        findings.wrong += [f"{place.name}: {line}" for line in _check(place, tree, findings)]
    return findings


def _concerns(artifact: Path, wanted: Path) -> bool:
    return artifact.is_relative_to(wanted) or wanted.is_relative_to(artifact)


def _check(place: Place, tree: Path, findings: Findings) -> Iterator[str]:
    try:
        record = read_record(place)
    except InputError:
        yield f"{MANIFEST} is damaged"
        return
    if record.is_earlier:
        findings.notes.append(f"{place.name}: made by an earlier version; only files are checked")
    else:
        if not _is_named_after(record):
            yield "what its manifest says defines it is not what the digest in its name stands for"
        yield from _check_inputs(record, tree, findings)
    outputs = record.manifest["outputs"]
    for name, expected in outputs.items():
        yield from _check_file(place.folder / name, name, expected, findings)
    if place.digest:
        for path in artifact_files(place.folder):
            name = path.relative_to(place.folder).as_posix()
            if name not in outputs:
                findings.notes.append(f"{place.name}: {name} is no part of the artifact")


def _is_named_after(record: Record) -> bool:
    spec = record.manifest["spec"]
    ending = [digest_of(spec), *([f"seed{spec['seed']}"] if "seed" in spec else [])]
    return record.place.name.split("/")[-len(ending) :] == ending


def _check_file(path: Path, name: str, expected: str, findings: Findings) -> Iterator[str]:
    try:
        status = path.stat()
        # A FIFO would be waited for.
        if not stat.S_ISREG(status.st_mode):
            yield f"{name} is not a regular file"
            return
        found = file_sha256(path)
    except OSError as error:
        yield f"{name} can't be read ({error.strerror})"
        return
    findings.files += 1
    findings.size += status.st_size
    if found != expected:
        yield f"{name} is damaged (its SHA-256 differs)"


def _check_inputs(record: Record, tree: Path, findings: Findings) -> Iterator[str]:
    for role, name in record.inputs.items():
        folder = tree.joinpath(*Path(name).parts[1:])
        if not (folder / MANIFEST).is_file():
            line = f"{record.place.name}: its input {_role(role, name)} is not in this tree"
            findings.notes.append(line)
            continue
        try:
            content = content_of(read_record(Place(folder, name)).manifest)
        except InputError:
            continue  # Said where that artifact is checked.
        if content != record.manifest["inputs"][role].get("content"):
            yield f"its input {_role(role, name)} is not the one that it was made from"


def _role(role: str, name: str) -> str:
    """Return how an input is called; pages show artifacts under no other role than their names."""
    return name if role == name else f"{role}, {name},"
