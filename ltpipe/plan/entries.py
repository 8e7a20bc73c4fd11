"""Which code makes an artifact: the module that runs its job, and what is found by name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ltpipe.config.backbones import backbone_settings
from ltpipe.config.plugins import is_plugin
from ltpipe.config.registry import code_of, load, module_of
from ltpipe.plan.stages import POOL, STAGES

# Systems whose networks are dumped in a way of their own.
_DUMPS = {
    "pretrained": "ltpipe.features.pretrained",
    "vision-language": "ltpipe.features.vision_language",
}
# Sets up a network that is not trained, whatever way of training it knows.
_FROZEN = "ltpipe.stage1.frozen"
_ROWS = "ltpipe.features.rows"
_TEMPLATES = Path(__file__).parents[1] / "evaluation" / "templates"


def job_module(spec: Mapping[str, Any]) -> str:
    """Return the module that runs the job of `spec`, its function being `run`."""
    kind = spec["kind"]
    if kind == "stage2":
        return module_of("method", spec["method"]["kind"])
    system = _system(spec.get("backbone", {}))
    if kind == "stage1":
        return _FROZEN if _is_frozen(spec) else module_of("system", system)
    if POOL in spec.get("inputs", {}):
        return _ROWS
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
        entries += [*code_of("method", spec["method"]["kind"]), *_loss_code(spec["method"])]
        for member in spec["method"].get("members", {}).values():
            entries += [*code_of("method", member["kind"]), *_loss_code(member)]
        if "dataset" in spec:
            entries.append(f"{str(entries[0]).rpartition('.')[0]}.online")
        for backbone in spec.get("backbones", {}).values():
            entries += _network_code(backbone)
    if "dataset" in spec:
        entries += code_of("source", spec["dataset"]["source"])
    if backbone := spec.get("backbone"):
        entries += _network_code(backbone)
        if kind == "stage1" and not _is_frozen(spec):
            entries += code_of("system", _system(backbone))
        loss = backbone_settings(backbone).loss
        entries += [] if loss is None else code_of("loss", loss.name)
    # A plug-in counts by its file, which is named beside it.
    return tuple(dict.fromkeys(entry for entry in entries if not is_plugin(str(entry))))


def _is_frozen(spec: Mapping[str, Any]) -> bool:
    backbone = spec.get("backbone", {})
    return _system(backbone) == "pretrained" and backbone.get("trained", "none") == "none"


def _system(backbone: Mapping[str, Any]) -> str:
    return str(backbone.get("system", "supervised"))


def _network_code(backbone: Mapping[str, Any]) -> tuple[str, ...]:
    system = _system(backbone)
    if system == "pretrained":
        return ("ltpipe.models.pretrained",)
    return code_of("tower" if system == "vision-language" else "network", backbone["network"])


def _loss_code(method: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the code of the loss that a method is told to use, or uses unless told."""
    field = load("method", method["kind"]).model_fields.get("loss")
    if field is None:
        return ()
    return code_of("loss", method["loss"]["name"] if "loss" in method else field.default.name)
