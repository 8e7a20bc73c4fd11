"""The contents of data and weights from outside, as plans and jobs need them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ltpipe.config.base import digest
from ltpipe.plan.fingerprints import Fingerprint, fingerprint, record, recorded
from ltpipe.plan.stages import RESULTS
from ltpipe.utils.errors import InputError

# Below results/: what files held when they were last read, and the fingerprints of data sets.
FINGERPRINTS = Path(RESULTS, "fingerprints")
# What stands for contents that were never seen.
ABSENT = "absent"


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
        key = digest([type(settings).__name__, settings.identity(), settings.located()])
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


def check_contents(
    spec: Mapping[str, Any], settings: Any, root: Path | None, base: Path = Path()
) -> Fingerprint:
    """Return the fingerprint of the files behind `settings`, which a job is about to read.

    Raises:
        InputError: they are not there, or no longer what `spec` was planned with.
    """
    found = OutsideContents(root, base).fingerprint(settings)
    planned = spec.get("outside", {}).get("files", found.digest if not found.files else ABSENT)
    if planned != found.digest:
        raise InputError(
            f"{_title(settings)}: the files from outside are not those that this job was planned "
            f"with ({planned[:10]}, now {found.digest[:10]}); plan again"
        )
    return found
