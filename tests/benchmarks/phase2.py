"""Measure an epoch of ECVL's phase II on cached views beside one with the towers in the loop.

python tests/benchmarks/phase2.py [--quick]

Both train the same adapter on the same digits for the same number of steps, two views an image,
RandAugment by memory. The towers are CLIP's RN50 at 224 x 224 with random numbers, which take as
long as any others, on 56 digits; with --quick those that digits-LT is trained with, on its 297.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ltpipe.artifacts.job import Job
from ltpipe.data import drawing
from ltpipe.features import vision_language as dump
from ltpipe.features.store import FeatureStore
from ltpipe.stage1 import vision_language
from ltpipe.stage2.ecvl.cached_views import CachedViews
from ltpipe.stage2.ecvl.job import prepare
from ltpipe.stage2.ecvl.online import OnlineViews
from ltpipe.stage2.ecvl.settings import ECVL
from ltpipe.stage2.ecvl.training import Phase2
from ltpipe.utils.io import write_json_atomic

CPU = torch.device("cpu")
DIGITS: dict[str, Any] = {
    "source": "digits",
    "imbalance": 100.0,
    "max_count": 120,
    "rounding": "nearest",
    "input": {"size": [8, 8], "channels": 1, "mean": [0.305], "std": [0.377], "padding": 1},
}
TOWERS: dict[str, dict[str, Any]] = {
    "RN50": {"network": "RN50", "epochs": 0},
    "small-resnet": {"network": "small-resnet", "epochs": 0, "logit_scale": 10.0},
}
FEWER = {"imbalance": 16.0, "max_count": 16}
METHOD: dict[str, Any] = {"batch_size": 64, "epochs": 1}
# Epochs are measured until this much time has passed, at least one.
SECONDS = 1.0


class Comparison(NamedTuple):
    """Seconds of the fastest epoch each, and those that 100 images take through the tower."""

    cached: float
    online: float
    latency: float


def phase2_epoch(network: str) -> Comparison:
    """Time an epoch of each with the towers called `network`, the second epoch on."""
    dataset = _dataset(network)
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        store = features_of(network, base)
        inputs = {"stage1.features": base / "stage1", "data": base / "data"}
        looped = {"dataset": dataset, "backbones": {"features": _backbone(network)}, "seed": 0}
        online = OnlineViews(Job(looped, inputs, base, CPU), store, randaugment=True)
        seconds = [_epoch(cached_fit(store)), _epoch(_fit(store, online))]
        facts = json.loads((base / "features/run.json").read_text())
    return Comparison(*seconds, facts["latency_s_per_100_images"])


def features_of(network: str, base: Path) -> FeatureStore:
    """Draw, start the towers and dump their features into folders of `base`."""
    dataset = _dataset(network)
    bare = {key: value for key, value in dataset.items() if key != "input"}
    _run(drawing.run, {"dataset": bare}, base / "data", {})
    spec = {"dataset": dataset, "backbone": _backbone(network), "seed": 0}
    _run(vision_language.run, spec, base / "stage1", {"data": base / "data"})
    # As few views as can be: what is cached does not change how long an epoch takes.
    features = {"views": 2, "ladder": {"strengths": 2, "draws": 2}}
    inputs = {"stage1": base / "stage1", "data": base / "data"}
    _run(dump.run, {**spec, "features": features}, base / "features", inputs)
    return FeatureStore.open(base / "features/train.h5")


def cached_fit(store: FeatureStore) -> Phase2:
    """Return the training of an adapter on cached views, before its first epoch."""
    return _fit(store, CachedViews(store, CPU, plain=False, by_strength=True, pairs=True))


def _dataset(network: str) -> dict[str, Any]:
    return DIGITS | (FEWER if network == "RN50" else {})


def _backbone(network: str) -> dict[str, Any]:
    return {"system": "vision-language", **TOWERS[network]}


def _settings(**values: Any) -> ECVL:
    return ECVL.model_validate(
        {"kind": "ecvl", "backbones": {"features": "features"}, **METHOD, **values}
    )


def _run(
    job: Callable[[Job], dict[str, Any]],
    spec: dict[str, Any],
    output: Path,
    inputs: dict[str, Path],
) -> dict[str, Any]:
    output.mkdir()
    facts = job(Job(spec, inputs, output, CPU))
    write_json_atomic(output / "run.json", facts)
    return facts


def _fit(store: FeatureStore, views: Any) -> Phase2:
    return prepare(_settings(), store, views, 0, CPU)


def _epoch(fit: Phase2) -> float:
    # The first epoch has no memory yet, and so no RandAugment.
    fit.run_epoch(0, 0.1)
    best, spent, epoch = float("inf"), 0.0, 1
    while spent < SECONDS:
        started = time.perf_counter()
        fit.run_epoch(epoch, 0.1)
        took = time.perf_counter() - started
        best, spent, epoch = min(best, took), spent + took, epoch + 1
    return best


def main() -> None:
    """Print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="the small towers instead of RN50")
    network = "small-resnet" if parser.parse_args().quick else "RN50"
    found = phase2_epoch(network)
    print(
        f"{network}: cached {1e3 * found.cached:.2f} ms an epoch, online "
        f"{1e3 * found.online:.0f} ms, ratio {found.online / found.cached:.0f}; 100 images take "
        f"{found.latency:.3f} s"
    )


if __name__ == "__main__":
    main()
