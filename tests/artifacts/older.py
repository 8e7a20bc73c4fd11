"""Results as older code, or version 0.1.0, would have left them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ltpipe.artifacts.earlier import FORMAT
from ltpipe.artifacts.manifest import content_of, write_manifest, write_sealed
from ltpipe.config.base import digest
from ltpipe.plan.code import code_modules
from ltpipe.plan.entries import code_entries
from ltpipe.plan.layout import ArtifactSpec
from ltpipe.plan.specs import digest_of, with_locations
from ltpipe.plan.stages import STAGES
from tests import plans

OLD_CODE = "0123456789"


def write_training(folder: Path, backbone: str = "net", **settings: Any) -> Path:
    """Write an experiment that trains a small network on digits, dumps it and has NCM."""
    values = {
        "experiment": "trained",
        "seeds": [0],
        "datasets": {"digits": {"source": "digits", "input": {**INPUT}, **SUBSET}},
        "backbones": {backbone: {**NETWORK, **settings}},
        "methods": {"NCM": {"kind": "ncm", "backbones": {"features": backbone}}},
        "tables": {"main": {"rows": [{"method": "NCM"}]}},
    }
    return plans.write_experiment(folder, values, "trained.yaml")


INPUT = {"size": [8, 8], "channels": 1, "mean": [0.3], "std": [0.4], "padding": 1}
SUBSET = {"imbalance": 20.0, "max_count": 40}
NETWORK = {
    "network": "resnet8",
    "loss": {"name": "ce"},
    "epochs": 4,
    "batch_size": 16,
    "schedule": {"kind": "cosine", "warmup": 0},
    "precision": "fp32",
    "features": {"precision": "fp32"},
}


def pretend(planned: ArtifactSpec, seconds: float = 7200.0) -> None:
    """Leave an artifact as a job would, its files empty."""
    folder = Path(planned.folder)
    for name in planned.stage.files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(planned.folder)
    write_manifest(
        folder,
        spec=planned.spec,
        modules=code_modules(code_entries(planned.spec)),
        inputs={role: Path(needed.folder) for role, needed in planned.inputs.items()},
        run_info={"wall_s": seconds, "draw": "0123456789abcdef"},
    )


Manifest = dict[str, Any]
Rewrite = Callable[[Manifest, dict[str, str]], tuple[Manifest, list[str]]]


def by_older_code(results: Path = Path("results")) -> dict[str, str]:
    """Move every artifact to where other code would have left it; return old folder by new."""

    def rewrite(
        manifest: dict[str, Any], moved: dict[str, str]
    ) -> tuple[dict[str, Any], list[str]]:
        spec = manifest["spec"]
        spec["code"] = OLD_CODE
        if "inputs" in spec:
            spec["inputs"] = {
                role: _digest(moved[entry["path"]]) for role, entry in manifest["inputs"].items()
            }
        first = next(iter(manifest["modules"]))
        manifest["modules"][first] = "0" * 64
        return manifest, [digest_of(spec)]

    return _move(results, rewrite)


def by_version_0_1_0(results: Path = Path("results")) -> dict[str, str]:
    """Move every artifact to where version 0.1.0 would have left it; return old folder by new."""

    def rewrite(
        manifest: dict[str, Any], moved: dict[str, str]
    ) -> tuple[dict[str, Any], list[str]]:
        spec = manifest["spec"]
        code = spec.pop("code")
        spec.pop("outside", None)
        spec = with_locations(spec)
        kind = spec["kind"]
        if spec.pop("inputs", None) is not None:
            paths = {role: entry["path"] for role, entry in manifest["inputs"].items()}
            used = {role: _digest(moved[path]) for role, path in paths.items()}
            if kind == "stage2":
                spec["features"] = {r.partition(".")[2]: d for r, d in used.items()}
            elif kind == "features":
                spec["stage1"] = used["stage1"]
        if kind == "import":
            spec["seed"] = 0
        settings = {key: value for key, value in spec.items() if key not in ("kind", "seed")}
        manifest |= {"format": FORMAT, "spec": spec, "code": code, "files": {}}
        return manifest, [] if kind == "report" else [digest(settings)]

    return _move(results, rewrite)


def _move(results: Path, rewrite: Rewrite) -> dict[str, str]:
    moved: dict[str, str] = {}
    contents: dict[str, str] = {}
    found = [json.loads(path.read_text()) for path in results.rglob("manifest.json")]
    folders = [path.parent for path in results.rglob("manifest.json")]
    order = list(STAGES)
    for folder, manifest in sorted(
        zip(folders, found, strict=True), key=lambda pair: order.index(pair[1]["spec"]["kind"])
    ):
        names = Path(*folder.parts[: 2 + STAGES[manifest["spec"]["kind"]].names])
        if folder.parts[1] == "experiments":
            # Pages name what they show.
            text = json.dumps(manifest)
            for new, old in moved.items():
                text = text.replace(f'"{new}"', f'"{old}"')
            manifest = json.loads(text)
        manifest, ending = rewrite(manifest, moved)
        seed = [f"seed{manifest['spec']['seed']}"] if "seed" in manifest["spec"] else []
        target = names.joinpath(*ending, *seed)
        for entry in manifest["inputs"].values():
            entry["path"] = moved.get(entry["path"], entry["path"])
            entry["content"] = contents[entry["path"]]
        target.mkdir(parents=True, exist_ok=True)
        for path in list(folder.iterdir()):
            path.replace(target / path.name)
        shutil.rmtree(folder)
        if seed and folder.parent.is_dir() and not any(folder.parent.iterdir()):
            folder.parent.rmdir()
        manifest.pop("checksum", None)
        write_sealed(target, manifest)
        moved[folder.as_posix()] = target.as_posix()
        contents[target.as_posix()] = content_of(manifest)
    return moved


def _digest(folder: str) -> str:
    parts = folder.split("/")
    return parts[-2] if parts[-1].startswith("seed") else parts[-1]
