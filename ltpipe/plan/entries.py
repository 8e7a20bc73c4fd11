"""Which code makes an artifact: the module that runs its job, and what is found by name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ltpipe.config.backbones import backbone_settings
from ltpipe.config.methods import settings_of
from ltpipe.config.registry import module_of
from ltpipe.plan.stages import STAGES

# Systems whose networks are dumped in a way of their own.
_DUMPS = {"vision-language": "ltpipe.features.vision_language"}
_TEMPLATES = Path(__file__).parents[1] / "evaluation" / "templates"


def job_module(spec: Mapping[str, Any]) -> str:
    """Return the module that runs the job of `spec`, its function being `run`."""
    kind = spec["kind"]
    if kind == "stage2":
        return module_of("method", spec["method"]["kind"])
    system = spec.get("backbone", {}).get("system", "supervised")
    if kind == "stage1":
        return module_of("system", system)
    module = STAGES[kind].module
    assert module is not None
    return _DUMPS.get(system, module) if kind == "features" else module


def code_entries(spec: Mapping[str, Any]) -> tuple[str | Path, ...]:
    """Return the modules that make the artifact of `spec`; its code is theirs and their imports'.

    Modules that are found by name, such as a network's, are named here, because following import
    statements does not reach them; so are the templates of pages.
    """
    kind = spec["kind"]
    entries: list[str | Path] = [job_module(spec)]
    if STAGES[kind].is_page:
        return (*entries, *sorted(path for path in _TEMPLATES.iterdir() if path.is_file()))
    if kind == "stage2":
        entries += _loss_modules(spec["method"])
        for member in spec["method"].get("members", {}).values():
            entries += [module_of("method", member["kind"]), *_loss_modules(member)]
        if "dataset" in spec:
            entries.append(f"{str(entries[0]).rpartition('.')[0]}.online")
        entries += [_network_module(backbone) for backbone in spec.get("backbones", {}).values()]
    if "dataset" in spec:
        entries.append(module_of("source", spec["dataset"]["source"]))
    if backbone := spec.get("backbone"):
        entries.append(_network_module(backbone))
        loss = backbone_settings(backbone).loss
        entries += [] if loss is None else [module_of("loss", loss.name)]
    return tuple(dict.fromkeys(entries))


def _network_module(backbone: Mapping[str, Any]) -> str:
    towers = backbone.get("system") == "vision-language"
    return module_of("tower" if towers else "network", backbone["network"])


def _loss_modules(method: Mapping[str, Any]) -> list[str]:
    """Return the module of the loss that a method is told to use, or uses unless told."""
    field = settings_of(method["kind"]).model_fields.get("loss")
    if field is None:
        return []
    return [module_of("loss", method["loss"]["name"] if "loss" in method else field.default.name)]
