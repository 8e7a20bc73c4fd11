"""What stands between an artifact as it lies there and the artifact that a plan asks for.

A manifest holds the settings, the code and the hashes of the inputs that an artifact was made from,
so its state follows from contents alone: neither times of files nor Snakemake's own records count.
Imports no torch; the Snakefile asks this of every artifact.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from ltpipe.artifacts.manifest import (
    MANIFEST,
    code_identity,
    code_modules,
    content_of,
    read_manifest,
)
from ltpipe.config.base import canonical_json
from ltpipe.plan.layout import RESULTS, Cell, code_entries
from ltpipe.runtime.environment import outside_file
from ltpipe.utils.errors import InputError
from ltpipe.utils.io import file_sha256

NOT_THERE = "not set"


class Artifacts:
    """The artifacts below `base` as they are now; what is read once is kept.

    `identity` gives the code identity of entry modules. `without_inputs` takes an artifact as
    it is where what it was made from is not there, such as features without their backbone.
    """

    def __init__(
        self,
        base: Path = Path(),
        identity: Callable[[tuple[str, ...]], str] = code_identity,
        without_inputs: bool = False,
    ) -> None:
        self.base = base
        self.without_inputs = without_inputs
        self.identity = identity
        self._manifests: dict[str, dict[str, Any] | InputError] = {}
        self._hashes: dict[Path, str | None] = {}
        self._current: dict[str, bool] = {}

    def is_there(self, cell: Cell) -> bool:
        """Return whether the artifact was finished, be it current or not."""
        return (self.base / cell.folder / MANIFEST).is_file()

    def is_current(self, cell: Cell) -> bool:
        """Return whether the artifact and all that it is made from are what the plan asks for."""
        known = self._current.get(cell.folder)
        if known is None:
            above = all(
                self.is_current(needed)
                for needed in cell.inputs.values()
                if self.is_there(needed) or not self.without_inputs
            )
            known = self._current[cell.folder] = above and not self.has_changed(cell)
        return known

    def has_changed(self, cell: Cell) -> bool:
        """Return whether the artifact is missing, or made from other things than are there now.

        Files from outside may be large; they are read only if they are newer than the artifact.
        """
        return next(iter(self.changes(cell, quick=True)), None) is not None

    def is_newer_than(self, cell: Cell, paths: Iterable[str]) -> bool:
        """Return whether no file of a finished artifact is older than one of `paths`.

        Its benchmark is one of its files, as Snakemake sees it.
        """
        inside = cell.folder.removeprefix(f"{RESULTS}/")
        benchmark = self.base / RESULTS / "benchmarks" / f"{inside}.tsv"
        files = [*(self.base / cell.folder).rglob("*"), *[benchmark] * benchmark.exists()]
        oldest = min(map(_time, files), default=0)
        return all(_time(self.base / path) <= oldest for path in paths)

    def changes(self, cell: Cell, quick: bool = False) -> Iterable[str]:
        """Yield, a line each, why the artifact would be rebuilt; what it is made from aside.

        `quick` takes files from outside that are not newer than the artifact for unchanged, as it
        does those that are gone: they are not needed while the artifact is there.
        """
        manifest = self._manifest(cell.folder)
        if isinstance(manifest, InputError):
            yield str(manifest)
            return
        for path, old, new in differences(manifest.get("spec"), cell.spec):
            yield f"setting {path}: {old} -> {new}"
        for name in manifest.get("outputs", {}):
            if not (self.base / cell.folder / name).is_file():
                yield f"file {name} is missing"
        if manifest.get("code") != self.identity(code_entries(cell.spec)):
            yield from self._code_changes(manifest, cell)
        recorded = manifest.get("inputs", {})
        for role, needed in cell.inputs.items():
            if role not in recorded:
                # A report names what it shows, which is not all that its rule waits for.
                if cell.kind != "report":
                    yield f"input {role} ({needed.folder}) is new"
            elif not self.is_there(needed):
                if not self.without_inputs:
                    yield f"input {role} ({needed.folder}) is not there"
            elif self._content(needed.folder) != recorded[role].get("content"):
                yield f"input {role} ({needed.folder}) was made again and came out otherwise"
        for role in recorded.keys() - cell.inputs.keys():
            yield f"input {role} ({recorded[role]['path']}) is asked for no more"
        for name, value in manifest.get("files", {}).items():
            source = outside_file(name)
            if quick and self.is_newer_than(cell, [source]):
                continue
            if self._sha256(Path(source)) != value:
                yield f"file {name} from outside has changed, or is gone"

    def _code_changes(self, manifest: Mapping[str, Any], cell: Cell) -> Iterable[str]:
        old, new = manifest.get("modules", {}), code_modules(code_entries(cell.spec))
        for module in sorted({*old, *new}):
            if module not in new:
                yield f"module {module}: used no more"
            elif module not in old:
                yield f"module {module}: new"
            elif old[module] != new[module]:
                yield f"module {module}: changed"

    def _manifest(self, folder: str) -> dict[str, Any] | InputError:
        if folder not in self._manifests:
            try:
                self._manifests[folder] = read_manifest(self.base / folder)
            except InputError as error:
                self._manifests[folder] = error
        return self._manifests[folder]

    def _content(self, folder: str) -> str | None:
        manifest = self._manifest(folder)
        return None if isinstance(manifest, InputError) else content_of(manifest)

    def _sha256(self, path: Path) -> str | None:
        if path not in self._hashes:
            try:
                self._hashes[path] = file_sha256(self.base / path)
            except OSError:
                self._hashes[path] = None
        return self._hashes[path]


def differences(old: Any, new: Any, path: str = "") -> Iterable[tuple[str, str, str]]:
    """Yield the dotted path, the old and the new text of every setting that differs."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in sorted({*old, *new}):
            inner = f"{path}.{key}" if path else str(key)
            yield from differences(old.get(key), new.get(key), inner)
    elif old != new:
        yield path or "at the top", _shown(old), _shown(new)


def _shown(value: Any) -> str:
    return NOT_THERE if value is None else canonical_json(value)


def _time(path: Path) -> int:
    """Return when a file was last written; 0 for one that is not there."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0
