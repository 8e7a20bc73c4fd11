"""One small real world for all bundles: digits, seven backbones, any method trained on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from ltpipe.config.methods import settings_of
from ltpipe.config.registry import module_of
from ltpipe.data import drawing
from ltpipe.data.readers.digits import read_digits
from ltpipe.plan.entries import job_module
from ltpipe.stage2.dlsa import filter as flow_filter
from tests.support import CE, DIGITS, KPS, TOWERS, embed_on, run_job

DATASET = {**DIGITS, "val_fraction": 0.2}
SHORT = {**CE, "epochs": 3}
BACKBONES: dict[str, dict[str, Any]] = {
    "ce": SHORT,
    "kps": {**KPS, "epochs": 3, "loss": {"name": "kps", "adjust_from": 1}},
    "cws": {
        **SHORT,
        "system": "cws",
        "subclasses": [3, 2, 1, 1, 1, 1, 1, 1, 1, 1],
        "mapping": "alternating",
        "mapper": {"input": "softmax"},
    },
    "head": {**SHORT, "system": "hrjba-branch", "group": "head"},
    "tail": {**SHORT, "system": "hrjba-branch", "group": "tail", "attention": "simam"},
    "paco": {"system": "paco", **{k: v for k, v in SHORT.items() if k != "loss"}, "epochs": 1},
    "towers": TOWERS,
}
# Which backbone plays which role of a method: by the role's name, unless said here.
PLAYED = {
    "label-mapping": {"features": "cws"},
    "ecvl": {"features": "towers"},
    "zero-shot": {"features": "towers"},
    "tip-adapter": {"features": "towers"},
    "gla": {"features": "towers"},
}


class World:
    """Artifacts in a folder laid out as results are, each made when it is first asked for."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.data = base / "data/digits/0000000000"
        identity = {key: value for key, value in DATASET.items() if key != "input"}
        run_job(drawing, {"kind": "data", "dataset": identity}, self.data)

    def features(self, backbone: str, seed: int = 0) -> Path:
        folder = self.base / f"features/digits/{backbone}/0000000000/seed{seed}"
        if folder.exists():
            return folder
        settings = BACKBONES[backbone]
        spec = {"kind": "stage1", "dataset": DATASET, "backbone": settings, "seed": seed}
        stage1 = self.base / f"stage1/digits/{backbone}/0000000000/seed{seed}"
        run_job(_module(spec), spec, stage1, data=self.data)
        dumped: dict[str, Any] = {"precision": "fp32", "views": 1}
        if backbone == "towers":
            dumped |= {"views": 2, "ladder": {"strengths": 1, "draws": 2}}
        return embed_on(DATASET, folder, settings, stage1, self.data, seed, **dumped)

    def result(
        self,
        kind: str,
        settings: dict[str, Any],
        name: str = "m",
        seed: int = 0,
        played: dict[str, str] | None = None,
    ) -> Path:
        """Run a method and return its artifact's folder."""
        model: Any = settings_of(kind)
        annotation = model.model_fields["backbones"].annotation
        roles = list(getattr(annotation, "model_fields", None) or settings["backbones"])
        method = model.model_validate(
            {"kind": kind, "backbones": {role: role for role in roles}, **settings}
        )
        played = played or PLAYED.get(kind, {})
        inputs = {}
        for role in roles:
            backbone = played.get(role, "ce" if role == "features" else role)
            inputs[f"features.{role}"] = self.features(backbone, seed)
        inputs |= self._filters(method, inputs, name)
        folder = self.base / f"stage2/digits/{name}/0000000000/seed{seed}"
        spec = {"kind": "stage2", "method": method.identity(), "groups": "ranks", "seed": seed}
        run_job(_module(spec), spec, folder, **inputs)
        return folder

    def _filters(self, method: Any, inputs: dict[str, Path], name: str) -> dict[str, Path]:
        cascade = method.filters()
        found: dict[str, Path] = {}
        for block in range(1, (0 if cascade is None else cascade[1]) + 1):
            sources = {"features": inputs[f"features.{method.filter_role()}"]}
            if block > 1:
                sources["previous"] = found[f"filter.{block - 1}"]
            folder = self.base / f"filters/digits/{name}{block}/0000000000/seed0"
            spec = {"kind": "filter", "filter": cascade[0].identity(), "block": block, "seed": 0}
            run_job(flow_filter, spec, folder, **sources)
            found[f"filter.{block}"] = folder
        return found


def _module(spec: dict[str, Any]) -> Any:
    import importlib

    if spec["kind"] == "stage2":
        return importlib.import_module(module_of("method", spec["method"]["kind"]))
    return importlib.import_module(job_module(spec))


@pytest.fixture(scope="package")
def world(tmp_path_factory):
    return World(tmp_path_factory.mktemp("world") / "results")


@pytest.fixture(scope="package")
def images():
    """The test images, in the order of predictions."""
    return read_digits().test.images.load(np.arange(500))


def recorded(folder: Path, place: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return what the pipeline predicted: labels (N,), probabilities (N, C)."""
    with h5py.File(folder / "predictions.h5") as file:
        return file["predicted"][place], file["scores"][place]
