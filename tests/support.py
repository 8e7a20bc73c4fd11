"""Real artifacts made in seconds: digits subsets, trained backbones, feature stores."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from ltpipe.artifacts.job import Job
from ltpipe.artifacts.manifest import MANIFEST, write_manifest
from ltpipe.config.base import canonical_json, explain
from ltpipe.data import drawing
from ltpipe.data.loading import open_split
from ltpipe.data.opening import dataset_settings
from ltpipe.data.sources import Source
from ltpipe.data.subset import read_subset
from ltpipe.plan.code import code_identity
from ltpipe.plan.entries import code_entries, job_module
from ltpipe.plan.specs import digest_of
from ltpipe.stage1 import supervised
from ltpipe.training.engine import TrainingSet
from ltpipe.utils.errors import InputError

CPU = torch.device("cpu")
DIGITS: dict[str, Any] = {
    "source": "digits",
    "imbalance": 20.0,
    "max_count": 40,
    "input": {"size": [8, 8], "channels": 1, "mean": [0.3], "std": [0.4], "padding": 1},
}
CE: dict[str, Any] = {
    "network": "resnet8",
    "loss": {"name": "ce"},
    "epochs": 3,
    "batch_size": 16,
    "schedule": {"kind": "cosine", "warmup": 0},
    "precision": "fp32",
}
KPS: dict[str, Any] = {**CE, "head": "cosine", "loss": {"name": "kps", "adjust_from": 2}}
TOWERS: dict[str, Any] = {
    "system": "vision-language",
    "network": "small-vit",
    "epochs": 1,
    "batch_size": 32,
    "learning_rate": 1e-3,
    "logit_scale": 10.0,
    "precision": "fp32",
}


def open_source(source: str, root: Path | None, options: Mapping[str, Any]) -> Source:
    """Open a data set; `options` are its own settings, the stored size, channels and so on."""
    given = dict(options)
    size = given.pop("size", 8)
    stored = {"size": list(size) if isinstance(size, list | tuple) else [size, size]}
    stored |= {key: given.pop(key) for key in ("interpolation", "fit") if key in given}
    if given.pop("channels", 3) == 1:
        stored |= {"channels": 1, "mean": [0.5], "std": [0.5]}
    try:
        settings = dataset_settings({"source": source, "input": stored, **given})
    except ValidationError as error:
        raise explain(error, source) from None
    return settings.read(root)


def command_line(
    command: str, spec: dict[str, Any], inputs: dict[str, str], parent: str = "."
) -> list[str]:
    """Return a job's command as a rule would write it; the last word is its output folder."""
    spec = {**spec, "inputs": {role: Path(folder).name for role, folder in inputs.items()}}
    try:
        spec["code"] = code_identity(code_entries(spec))
    except (KeyError, InputError):
        spec["code"] = ""
    ending = [digest_of(spec), *([f"seed{spec['seed']}"] if "seed" in spec else [])]
    roles = [f"--input={role}={folder}" for role, folder in inputs.items()]
    output = str(Path(parent, *ending))
    return [command, "--spec", canonical_json(spec), *roles, "--output", output]


def run_job(module: Any, spec: dict[str, Any], output: Path, **inputs: Path) -> dict[str, Any]:
    """Run a job in this process and leave its manifest."""
    output.mkdir(parents=True, exist_ok=True)
    roles = {role.replace("_", "."): folder for role, folder in inputs.items()}
    facts = module.run(Job(spec=spec, inputs=roles, output=output, device=CPU))
    finished = {role: path for role, path in roles.items() if (path / MANIFEST).is_file()}
    recorded = {"code": "0" * 10, **spec}
    write_manifest(output, spec=recorded, modules={}, inputs=finished, run_info=facts or {})
    return facts


def draw(base: Path) -> Path:
    """Draw the digits subset."""
    dataset = {key: value for key, value in DIGITS.items() if key != "input"}
    run_job(drawing, {"kind": "data", "dataset": dataset}, base / "data")
    return base / "data"


def training_set(data: Path) -> TrainingSet:
    """Return the drawn images as a task trains on them."""
    subset = read_subset(data / "subset.h5")
    split = open_split(DIGITS, subset, "train", CPU, None)
    return TrainingSet(split.batches, split.labels, split.pixels, subset.class_counts)


def train(base: Path, backbone: dict[str, Any], data: Path, seed: int = 0) -> Path:
    """Train a backbone on it."""
    spec = {"kind": "stage1", "dataset": DIGITS, "backbone": backbone, "seed": seed}
    run_job(supervised, spec, base, data=data)
    return base


def embed(
    base: Path, backbone: dict[str, Any], stage1: Path, data: Path, seed: int = 0, **features: Any
) -> Path:
    """Dump its features on digits, in full precision."""
    features = {"precision": "fp32", "views": 2, **features}
    return embed_on(DIGITS, base, backbone, stage1, data, seed, **features)


def embed_on(
    dataset: dict[str, Any],
    base: Path,
    backbone: dict[str, Any],
    stage1: Path,
    data: Path,
    seed: int = 0,
    **features: Any,
) -> Path:
    """Dump a backbone's features on any data set."""
    spec = {
        "kind": "features",
        "dataset": dataset,
        "backbone": backbone,
        "features": features,
        "seed": seed,
    }
    run_job(importlib.import_module(job_module(spec)), spec, base, stage1=stage1, data=data)
    return base
