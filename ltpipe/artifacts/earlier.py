"""Manifests of this version and of version 0.1.0, read into one form.

Until path identity came, specs held settings with the places of files among them and digests of
inputs under names of their own; code and contents of files from outside stood beside the spec.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from ltpipe.artifacts.manifest import read_manifest
from ltpipe.artifacts.tree import Place, recorded_name
from ltpipe.config.backbones import backbone_settings
from ltpipe.config.datasets import Dataset, StoreFiles
from ltpipe.plan.stages import MANIFEST
from ltpipe.utils.errors import InputError

FORMAT = "ltpipe-manifest/1"
# Of a spec: what is no setting.
_BESIDE = ("kind", "seed", "code", "inputs", "outside", "locations")
# Digests of inputs in specs of version 0.1.0; its manifests name the inputs' folders as well.
_DIGESTS = {
    "features": ("stage1",),
    "filter": ("features", "previous"),
    "stage2": ("features", "filters", "tuning"),
}
_RENAMED = {"own-classifier": "backbone-head"}
_DATASET: TypeAdapter[Any] = TypeAdapter(Dataset)


@dataclass(frozen=True)
class Record:
    """A finished artifact as its manifest tells it.

    Attributes:
        manifest: as it was written.
        spec: all that defines it, in today's form.
    """

    place: Place
    manifest: dict[str, Any]
    spec: dict[str, Any]

    @property
    def is_earlier(self) -> bool:
        """Whether version 0.1.0 wrote it."""
        return bool(self.manifest["format"] == FORMAT)

    @property
    def code(self) -> str:
        """The identity of the code that made it."""
        return str(self.spec.get("code", ""))

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that define it, and nothing else."""
        return settings_in(self.spec)

    @cached_property
    def inputs(self) -> dict[str, str]:
        """What plans call each artifact that it was made from, by role."""
        return {r: recorded_name(entry["path"]) for r, entry in self.manifest["inputs"].items()}

    @property
    def outside(self) -> dict[str, str] | None:
        """The contents of files from outside; None where the version recorded none."""
        return None if self.is_earlier else self.spec.get("outside", {})

    @property
    def hours(self) -> float:
        """How long it took to make."""
        return float(self.manifest.get("wall_s", 0.0)) / 3600


def settings_in(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings in a spec."""
    return {key: value for key, value in spec.items() if key not in _BESIDE}


def read_record(place: Place) -> Record:
    """Return what the manifest of a finished artifact says.

    Raises:
        InputError: the manifest is missing or damaged.
    """
    manifest = _earlier_manifest(place.folder)
    if manifest is None:
        manifest = read_manifest(place.folder)
        return Record(place, manifest, manifest["spec"])
    spec = {**modern_spec(manifest["spec"]), "code": str(manifest.get("code", ""))}
    return Record(place, manifest, spec)


def _earlier_manifest(folder: Path) -> dict[str, Any] | None:
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        is_whole = manifest["format"] == FORMAT and all(
            isinstance(manifest[key], dict) for key in ("spec", "inputs", "outputs", "modules")
        )
        return manifest if is_whole and "kind" in manifest["spec"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def modern_spec(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return a spec of version 0.1.0 without digests of inputs and without places of files.

    Settings that can't be read any more stay as they are, and so differ from today's.
    """
    modern = {k: v for k, v in spec.items() if k not in _DIGESTS.get(spec["kind"], ())}
    for section, read in _SECTIONS.items():
        if isinstance(modern.get(section), Mapping):
            with contextlib.suppress(ValidationError, InputError, KeyError, TypeError):
                modern[section] = read(modern[section])
    if spec["kind"] == "features":
        with contextlib.suppress(ValidationError, InputError, KeyError, TypeError):
            known = type(backbone_settings(spec["backbone"]).features)
            modern["features"] = known.model_validate(spec["features"]).identity()
    return modern


def _dataset(values: Mapping[str, Any]) -> dict[str, Any]:
    if "input" in values or values["source"] == "features":
        identity: dict[str, Any] = _DATASET.validate_python(values).image_identity()
        return identity
    # What identifies a draw does not say how images reach a network.
    drawn: dict[str, Any] = _DATASET.validate_python(
        {**values, "input": {"size": [1, 1]}}
    ).draw_identity()
    return drawn


def _backbone(values: Mapping[str, Any]) -> dict[str, Any]:
    identity: dict[str, Any] = backbone_settings(values).train_identity()
    return identity


def _method(values: Mapping[str, Any]) -> dict[str, Any]:
    method = {**values, "kind": _RENAMED.get(values["kind"], values["kind"])}
    if "members" in values:
        method["members"] = {name: _method(inner) for name, inner in values["members"].items()}
    return method


_SECTIONS: dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
    "dataset": _dataset,
    "backbone": _backbone,
    "backbones": lambda values: {role: _backbone(inner) for role, inner in values.items()},
    "method": _method,
    "store": lambda values: StoreFiles.model_validate(values).identity(),
}
