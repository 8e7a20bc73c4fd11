"""Manifests: what an artifact was made from, and what it is."""

from __future__ import annotations

import hashlib
import json
import platform
import resource
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from ltpipe import __version__
from ltpipe.config.base import canonical_json
from ltpipe.plan.stages import MANIFEST, RESUME
from ltpipe.utils.errors import InputError
from ltpipe.utils.io import file_sha256, is_temporary, open_regular, write_json_atomic

FORMAT = "ltpipe-manifest/3"
# Of the same form, without a checksum of its own.
_UNSEALED = "ltpipe-manifest/2"
# Records of a run, such as seconds an epoch: they differ from run to run and nothing reads them on.
_RECORDS = ("history.csv",)
# Snakemake's own mark in folders that are outputs.
_TIMESTAMP = ".snakemake_timestamp"


def versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that numbers depend on."""
    found = {"python": platform.python_version(), "ltpipe": __version__}
    names = ("torch", "torchvision", "open_clip_torch", "numpy", "h5py", "scikit-learn", "nflows")
    for name in (*names, "snakemake"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def peak_memory_mib() -> float:
    """Return the highest resident memory of this process so far, in MiB."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)


def artifact_files(folder: Path) -> list[Path]:
    """Return the files that an artifact consists of, its manifest and unfinished ones aside."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.is_file()
        and path != folder / MANIFEST
        and path.name != _TIMESTAMP
        and not is_temporary(path)
        and RESUME not in path.relative_to(folder).parts[:-1]
    )


def write_manifest(
    folder: Path,
    *,
    spec: Mapping[str, Any],
    modules: Mapping[str, str],
    inputs: Mapping[str, Path],
    run_info: Mapping[str, Any],
) -> None:
    """Write `folder`/manifest.json, the last file of an artifact.

    It holds the spec, the hashes of the modules behind its code, the contents of the artifacts in
    the folders `inputs`, the SHA-256 of every file in the folder, versions, and what `run_info`
    says of the run, such as device and wall time.
    """
    outputs = artifact_files(folder)
    write_sealed(
        folder,
        {
            "format": FORMAT,
            "spec": spec,
            "modules": modules,
            "inputs": {
                role: {"path": str(path), "content": content_of(read_manifest(path))}
                for role, path in inputs.items()
            },
            "outputs": {path.relative_to(folder).as_posix(): file_sha256(path) for path in outputs},
            "versions": versions(),
            "peak_memory_mib": peak_memory_mib(),
            **run_info,
        },
    )


def write_sealed(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write a manifest with the checksum of its own content."""
    content = {key: value for key, value in manifest.items() if key != "checksum"}
    write_json_atomic(folder / MANIFEST, {**content, "checksum": _checksum(content)})


def _checksum(content: Mapping[str, Any]) -> str:
    # As it is read back: keys are text, tuples are lists.
    read = json.loads(json.dumps(content))
    text = json.dumps(read, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def input_beside(folder: Path, named: Path) -> Path:
    """Return the folder that an artifact's manifest names as an input.

    It lies below the working folder, or below a folder that has the artifact.

    Raises:
        InputError: it is not there.
    """
    for base in (Path(), *folder.resolve().parents):
        if (base / named).is_dir():
            return base / named
    raise InputError(f"{folder}: what it was made from, {named}, is not there")


def content_of(manifest: Mapping[str, Any]) -> str:
    """Return the SHA-256 of what an artifact is: its spec and its files, not when it was made.

    An artifact that was made again and came out the same has the same content, wherever the data
    lay.
    """
    spec = {key: value for key, value in manifest["spec"].items() if key != "locations"}
    text = canonical_json({"spec": spec, "outputs": outputs_of(manifest)})
    return hashlib.sha256(text.encode()).hexdigest()


def outputs_of(manifest: Mapping[str, Any]) -> dict[str, str]:
    """Return the SHA-256 of an artifact's files by name, records of the run aside."""
    outputs = manifest["outputs"].items()
    return {name: value for name, value in outputs if name not in _RECORDS}


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return `folder`/manifest.json, held against its checksum.

    Raises:
        InputError: the file is missing or damaged.
    """
    path = folder / MANIFEST
    try:
        with open_regular(path) as handle:
            manifest = json.load(handle)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; the artifact is not finished") from None
    except (ValueError, RecursionError):
        raise InputError(f"{path}: damaged; delete the folder and run again") from None
    except OSError as error:
        raise InputError(f"{path}: can't be read ({error.strerror})") from None
    if not _is_manifest(manifest):
        raise InputError(f"{path}: not a manifest of this version; delete the folder and run again")
    expected = manifest.pop("checksum", None)
    if manifest["format"] == FORMAT and expected != _checksum(manifest):
        raise InputError(f"{path}: damaged; delete the folder and run again")
    return manifest


def _is_manifest(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and value.get("format") in (FORMAT, _UNSEALED)
        and all(isinstance(value.get(key), dict) for key in ("spec", "modules", "outputs"))
        and isinstance(value.get("inputs"), dict)
        and all(
            isinstance(entry, dict) and isinstance(entry.get("path"), str)
            for entry in value["inputs"].values()
        )
    )
