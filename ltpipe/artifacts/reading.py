"""Finished artifacts, read back: every file is held against its manifest before it is used."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ltpipe.artifacts.manifest import content_of, input_beside, read_manifest
from ltpipe.plan.specs import with_locations
from ltpipe.plan.stages import MANIFEST
from ltpipe.utils.errors import InputError
from ltpipe.utils.io import file_sha256

# What every manifest says; the rest are what the method found.
_COMMON = (
    "format",
    "spec",
    "modules",
    "inputs",
    "outputs",
    "adopted",
    "versions",
    "peak_memory_mib",
    "wall_s",
    "device",
    "protocol",
    "points",
)
# Files that this process found to be as they were written: their path, state and SHA-256.
_CHECKED: set[tuple[str | int, ...]] = set()


@dataclass(frozen=True)
class Artifact:
    """A finished artifact: its folder and its manifest."""

    folder: Path
    manifest: dict[str, Any]

    @property
    def spec(self) -> dict[str, Any]:
        """What the artifact was made by, files where they lay."""
        return with_locations(self.manifest["spec"])

    def inputs(self, prefix: str) -> dict[str, Artifact]:
        """Return the artifacts of the roles that begin with `prefix`, by what follows it.

        Raises:
            InputError: one is not there, or is another one than this artifact was made from.
        """
        found = {}
        for role, named in self.manifest["inputs"].items():
            if role.startswith(prefix):
                made = open_artifact(input_beside(self.folder, Path(named["path"])))
                if content_of(made.manifest) != named["content"]:
                    raise InputError(
                        f"{made.folder} is not what {self.folder} was made from; run the "
                        "experiment again"
                    )
                found[role.removeprefix(prefix)] = made
        return found

    def file(self, name: str) -> Path:
        """Return a file of the artifact.

        Raises:
            InputError: it is missing, or is not as it was written.
        """
        path = self.folder / name
        expected = self.manifest["outputs"].get(name)
        if expected is None or not path.is_file():
            raise InputError(f"{path}: no such file; delete the folder and run again")
        status = path.stat()
        times = status.st_mtime_ns, status.st_ctime_ns
        state = (str(path.resolve()), status.st_ino, status.st_size, *times, expected)
        if state not in _CHECKED:
            if file_sha256(path) != expected:
                raise InputError(f"{path}: damaged; delete the folder and run again")
            _CHECKED.add(state)
        return path

    def run_info(self) -> dict[str, Any]:
        """Return what the manifest says of the run beyond what all manifests say."""
        return {key: value for key, value in self.manifest.items() if key not in _COMMON}

    def origin(self) -> dict[str, str]:
        """Return what names the artifact for good."""
        return {
            "folder": "/".join(self.folder.resolve().parts[-5:]),
            "content": content_of(self.manifest),
            "code": str(self.manifest["spec"]["code"]),
        }


def checked_file(folder: Path, name: str) -> Path:
    """Return a file of an artifact, held against its manifest.

    A folder without a manifest, which no rule hands to a job, is taken as it is.

    Raises:
        InputError: the file is missing or damaged.
    """
    return open_artifact(folder).file(name) if (folder / MANIFEST).is_file() else folder / name


def checked_file_if_any(folder: Path, name: str) -> Path | None:
    """Return a file of an artifact that not all have, as `checked_file`; None if it has none.

    Raises:
        InputError: its manifest names the file, and it is missing or damaged.
    """
    if (folder / MANIFEST).is_file():
        artifact = open_artifact(folder)
        return artifact.file(name) if name in artifact.manifest["outputs"] else None
    return folder / name if (folder / name).is_file() else None


def open_artifact(folder: Path) -> Artifact:
    """Return the artifact in a folder.

    Raises:
        InputError: there is no finished one.
    """
    return Artifact(folder, read_manifest(folder))
