"""Are finished artifacts still what their manifests say, on this machine or in an archive?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ltpipe.artifacts.manifest import (
    MANIFEST,
    artifact_files,
    content_of,
    identity_of_modules,
    read_manifest,
)
from ltpipe.artifacts.tree import Place, find_tree, places, recorded_place
from ltpipe.config.base import digest
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

    For each artifact: the hash of every file; the checksums inside feature stores and subsets;
    what it was made from, where that is in the tree; that the folder's name is the digest of its
    settings; that the code identity is that of its modules. Nothing is written.

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
        manifest = read_manifest(place.folder)
    except InputError:
        yield f"{MANIFEST} is damaged"
        return
    spec, outputs = manifest["spec"], manifest["outputs"]
    if identity_of_modules(manifest["modules"]) != manifest.get("code"):
        yield "the code identity is not that of the modules listed"
    if not _is_named_after(place, spec):
        yield "the settings are not those that the folder's digest stands for"
    for name, expected in outputs.items():
        path = place.folder / name
        try:
            found = file_sha256(path)
            findings.size += path.stat().st_size
        except OSError as error:
            yield f"{name} can't be read ({error.strerror})"
            continue
        findings.files += 1
        if found != expected:
            yield f"{name} is damaged (its SHA-256 differs)"
        elif path.suffix == ".h5":
            yield from _check_inside(path, name)
    for path in artifact_files(place.folder):
        name = path.relative_to(place.folder).as_posix()
        if name not in outputs:
            findings.notes.append(f"{place.name}: {name} is no part of the artifact")
    for role, entry in manifest["inputs"].items():
        yield from _check_input(role, entry, tree, place, findings)


def _is_named_after(place: Place, spec: dict[str, Any]) -> bool:
    if spec.get("kind") in ("report", "overview"):
        return place.folder.name == spec.get("experiment")
    parts = place.name.split("/")
    settings = {key: value for key, value in spec.items() if key not in ("kind", "seed")}
    if "seed" in spec and parts.pop() != f"seed{spec['seed']}":
        return False
    return parts[-1] == digest(settings)


def _check_input(
    role: str, entry: dict[str, str], tree: Path, place: Place, findings: Findings
) -> Iterator[str]:
    name = recorded_place(entry["path"])
    path = tree.joinpath(*Path(name).parts[1:], MANIFEST)
    if not path.is_file():
        findings.notes.append(f"{place.name}: its input {role}, {name}, is not in this tree")
        return
    try:
        content = content_of(read_manifest(path.parent))
    except InputError:
        return  # Said where that artifact is checked.
    if content != entry.get("content"):
        yield f"its input {role}, {name}, has been made again since and came out otherwise"


def _check_inside(path: Path, name: str) -> Iterator[str]:
    """Check the checksums that an HDF5 file carries for its own data sets."""
    import h5py

    from ltpipe.data.subset import FORMAT as SUBSET
    from ltpipe.data.subset import read_subset
    from ltpipe.features.store import FORMAT as STORE
    from ltpipe.features.store import FeatureStore

    try:
        with h5py.File(path, "r", locking=False) as file:
            kind = file.attrs.get("format")
        if kind == STORE:
            FeatureStore.open(path)
        elif kind == SUBSET:
            read_subset(path)
    except (OSError, KeyError, RuntimeError, InputError) as error:
        yield f"{name} is damaged ({str(error).splitlines()[0]})"
