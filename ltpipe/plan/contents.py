"""The contents of data and weights from outside, as plans and jobs need them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from ltpipe.config.backbones import backbone_settings
from ltpipe.config.base import digest as digest_of
from ltpipe.config.datasets import Dataset
from ltpipe.plan.fingerprints import (
    Fingerprint,
    fingerprint,
    record,
    recorded,
    recorded_files,
)
from ltpipe.plan.stages import RESULTS
from ltpipe.utils.errors import InputError
from ltpipe.utils.io import printable

# Below results/: what files held when they were last read, and the fingerprints of data sets.
FINGERPRINTS = Path(RESULTS, "fingerprints")
# What stands for contents that were never seen.
ABSENT = "absent"
_DATASET: TypeAdapter[Any] = TypeAdapter(Dataset)


class OutsideContents:
    """Reads the files that settings name under `root`, each once; unchanged ones are not read.

    Where they are not there, the fingerprint that was last recorded stands in, and `notes` says so;
    what was never seen is marked absent, so that nothing made without it can be taken for good.
    """

    def __init__(self, root: Path | None, base: Path = Path()) -> None:
        self.root = root
        self.folder = base / FINGERPRINTS
        self.notes: list[str] = []
        self._known: dict[str, dict[str, str]] = {}

    def __call__(self, settings: Any) -> dict[str, str]:
        """Return the digest of the files that `settings` name, or nothing where they name none."""
        key = digest_of([type(settings).__name__, settings.identity(), settings.located()])
        if key not in self._known:
            self._known[key] = self._read(settings, key)
        return self._known[key]

    def _read(self, settings: Any, key: str) -> dict[str, str]:
        try:
            found = self.fingerprint(settings)
        except InputError as error:
            return {"files": self._stand_in(key, error)}
        if not found.files:
            return {}
        record(self.folder, key, found)
        return {"files": found.digest}

    def fingerprint(self, settings: Any) -> Fingerprint:
        """Return the fingerprint of the files that `settings` name, as they are now.

        Raises:
            InputError: they are not there, or can't be read.
        """
        return fingerprint(
            settings.files(self.root), self.folder / "hashes", title=_title(settings)
        )

    def _stand_in(self, key: str, error: InputError) -> str:
        known = recorded(self.folder, key)
        if known is None:
            return ABSENT
        self.notes.append(f"{error}; taken as last seen, so nothing that opens it can run")
        return known.digest


def _title(settings: Any) -> str:
    return str(getattr(settings, "label", None) or getattr(settings, "description", "") or "files")


def planned_files(
    spec: Mapping[str, Any], drawn: Mapping[str, Any] | None, root: Path | None, base: Path = Path()
) -> dict[str, str]:
    """Return the files from outside that a job may read: absolute path to planned SHA-256.

    Args:
        spec: the job's spec, files where they lie.
        drawn: the spec of the subset that the job is given, if it is given one.
        root: the folder of the data sets.
        base: what results/ is relative to.

    Raises:
        InputError: files are not there, were added or are gone since the run was planned, or the
            record of what it was planned with is not there.
    """
    expected: dict[str, str] = {}
    data = spec if spec["kind"] == "data" else drawn or {}
    if "dataset" in spec and (digest := data.get("outside", {}).get("files")):
        # Of what images become, files know nothing.
        identity = {"input": {"size": [1, 1]}, **spec["dataset"]}
        if identity["source"] == "features":
            del identity["input"]
        expected |= _held(_DATASET.validate_python(identity), digest, root, base)
    if spec["kind"] == "stage1" and (digest := spec.get("outside", {}).get("files")):
        expected |= _held(backbone_settings(spec["backbone"]), digest, root, base)
    return expected


def _held(settings: Any, digest: str, root: Path | None, base: Path) -> dict[str, str]:
    there = dict(settings.files(root))
    if digest == ABSENT:
        raise InputError(f"{_title(settings)}: was not there when this run was planned; plan again")
    planned = recorded_files(base / FINGERPRINTS, digest)
    for name in sorted(planned.files.keys() ^ there.keys()):
        what = "was not there" if name in there else "is gone, and was there"
        path = there.get(name, name)
        raise InputError(f"{printable(path)}: {what} when this run was planned; plan again")
    return {
        os.path.abspath(path): planned.files[name]  # noqa: PTH100 - links stay as they are named
        for name, path in there.items()
    }
