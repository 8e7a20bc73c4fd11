"""Measure on a GPU what is promised there, and print it beside the goals.

python tests/benchmarks/gpu.py [--epochs N] [--only NAME ...] [--csv PATH]

Images, features and labels are random: only time and memory are measured. Without a GPU the goals
stay unmeasured; `--device cpu --small` runs every path on tiny sizes.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

sys.path.insert(0, str(Path(__file__).parent))
from stage1 import PIXELS
from stage2 import centred_features, sweep_fit

from ltpipe.artifacts.job import Job
from ltpipe.artifacts.manifest import write_manifest
from ltpipe.config.backbones import Backbone
from ltpipe.data.augment import Augmentation
from ltpipe.data.batches import open_batches
from ltpipe.data.images import ArrayImages
from ltpipe.data.longtail import class_counts
from ltpipe.features.store import write_features
from ltpipe.losses.softmax import CrossEntropyLoss
from ltpipe.models.resnet import resnet8, resnet32
from ltpipe.stage2.dlsa import filter as flow_filter
from ltpipe.stage2.dlsa import job as dlsa
from ltpipe.stage2.dlsa.settings import DLSA
from ltpipe.training.devices import describe, lease, precision
from ltpipe.training.engine import TrainingSet, train

EPOCHS, IMAGES = 200, 10_847


@dataclasses.dataclass(frozen=True)
class Scale:
    """How much is run: for the goals, or for tests."""

    device: torch.device
    small: bool
    epochs: int

    def pick(self, full: int, small: int) -> int:
        """Return one of the two sizes."""
        return small if self.small else full


@dataclasses.dataclass
class Row:
    """One line: seconds where there is a goal in seconds, else a rate."""

    name: str
    value: float
    unit: str
    goal_s: float | None = None
    peak_mib: float = float("nan")
    remark: str = ""


def timed(scale: Scale, work: Callable[[], Any]) -> tuple[float, float]:
    """Return the seconds of `work`, the device's part included, and the device's peak in MiB."""
    if scale.device.type != "cuda":
        started = time.perf_counter()
        work()
        return time.perf_counter() - started, float("nan")
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(scale.device)
    torch.cuda.synchronize(scale.device)
    started = time.perf_counter()
    work()
    torch.cuda.synchronize(scale.device)
    seconds = time.perf_counter() - started
    return seconds, torch.cuda.max_memory_allocated(scale.device) / 2**20


def images(scale: Scale) -> TrainingSet:
    """Return random images of CIFAR's shape, on the device."""
    stream = np.random.default_rng(0)
    samples = scale.pick(IMAGES, 96)
    pixels = stream.integers(0, 256, (samples, 32, 32, 3), dtype=np.uint8)
    labels = torch.from_numpy(np.arange(samples) % 10)
    plan = Augmentation((32, 32), padding=4, flip=True)
    batches = open_batches(ArrayImages(pixels), np.arange(samples), plan, scale.device)
    return TrainingSet(batches, labels, PIXELS, labels.bincount().tolist())


def training(scale: Scale) -> Iterator[Row]:
    data = images(scale)
    settings = Backbone.model_validate(
        {
            "network": "resnet8" if scale.small else "resnet32",
            "loss": {"name": "ce"},
            "epochs": scale.epochs,
            "batch_size": scale.pick(128, 32),
            "schedule": {"kind": "cosine", "warmup": 0},
        }
    )
    network = resnet8(10) if scale.small else resnet32(10)
    seconds, peak = timed(
        scale,
        lambda: train(network, CrossEntropyLoss(), data, settings, seed=0, device=scale.device),
    )
    yield Row("ResNet-32", scale.epochs / seconds, "epochs/s", None, peak)
    remark = "" if scale.epochs == EPOCHS else f"extrapolated from {scale.epochs} epochs"
    whole = EPOCHS / scale.epochs * seconds
    yield Row(f"ResNet-32, {EPOCHS} epochs", whole, "s", 30.0, peak, remark)


def sweep(scale: Scale) -> Iterator[Row]:
    """11 coefficients x 3 seeds, 30 epochs, features of 64 dimensions."""
    counts = class_counts(10, 5000 if not scale.small else 50, 10 if scale.small else 100)
    tables, labels = centred_features(counts, [0])
    fit = functools.partial(
        sweep_fit, tables, labels, counts, scale.pick(30, 1), device=scale.device
    )
    fit()
    seconds, peak = timed(scale, fit)
    yield Row("FFN sweep, 11 models, 30 epochs", seconds, "s", 3.0, peak)


def cascade(scale: Scale) -> Iterator[Row]:
    """DLSA's filters and classifiers on features of ImageNet-LT's size."""
    samples, dimension, classes = (
        scale.pick(115_846, 240),
        scale.pick(2048, 16),
        scale.pick(1000, 6),
    )
    small = {"clusters": 4, "epochs": 1, "hidden": 16, "batch_size": 64}
    small |= {"learning_rate": 0.05, "likelihood_weight": 0.05}
    values: dict[str, Any] = {"kind": "dlsa", "backbones": {"features": "features"}}
    if scale.small:
        values |= {"filter": small, "epochs": 1}
    settings = DLSA.model_validate(values)
    draws = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as base:
        folder = Path(base)
        for split, size in (("train", samples), ("test", samples // 10)):
            write_features(
                folder / f"{split}.h5",
                features=draws.standard_normal((size, dimension), dtype=np.float32),
                labels=np.arange(size) % classes,
                class_names=[str(c) for c in range(classes)],
                class_counts=np.bincount(np.arange(samples) % classes, minlength=classes).tolist(),
            )
        seconds, peak = timed(scale, lambda: _cascade(scale, settings, folder))
    remark = precision(settings.filter.precision, scale.device, "products")
    yield Row(
        f"DLSA, {samples:,} x {dimension}, {settings.filter.clusters} clusters",
        seconds,
        "s",
        300.0,
        peak,
        str(remark),
    )


def _cascade(scale: Scale, settings: DLSA, folder: Path) -> None:
    inputs: dict[str, Path] = {}
    for block in range(1, settings.blocks + 1):
        output = folder / f"filter{block}"
        output.mkdir()
        spec = {"filter": settings.filter.identity(), "block": block, "seed": 0}
        before = {"previous": inputs[f"filter.{block - 1}"]} if block > 1 else {}
        flow_filter.run(Job(spec, {"features": folder, **before}, output, scale.device))
        write_manifest(output, spec=spec, modules={}, inputs={}, run_info={})
        inputs[f"filter.{block}"] = output
    output = folder / "dlsa"
    output.mkdir()
    spec = {"method": settings.identity(), "groups": "ranks", "seed": 0}
    dlsa.run(Job(spec, {"features.features": folder, **inputs}, output, scale.device))


SUITES = {"training": training, "sweep": sweep, "cascade": cascade}


def main() -> int:
    """Run the suites and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--small", action="store_true", help="tiny sizes, for tests")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="of ResNet-32 (default: 200)")
    parser.add_argument("--only", nargs="+", choices=SUITES, default=list(SUITES))
    parser.add_argument("--csv", type=Path, help="write the table there too")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        print("no GPU here: the goals on GPUs stay unmeasured")
        return 0
    rows: list[Row] = []
    with lease(options.device) as device:
        scale = Scale(device, options.small, options.epochs)
        machine = f"{describe(device)}, torch {torch.__version__}"
        print(machine)
        for name in options.only:
            for row in SUITES[name](scale):
                if options.small:
                    row = dataclasses.replace(row, name=f"tiny: {row.name}", goal_s=None)
                goal = "" if row.goal_s is None else f"goal {row.goal_s:g} s"
                print(
                    f"{row.name:<44}{row.value:>12,.2f} {row.unit:<9}{goal:<12}"
                    f"{row.peak_mib:>9,.0f} MiB  {row.remark}",
                    flush=True,
                )
                rows.append(row)
    if options.csv is not None:
        options.csv.parent.mkdir(parents=True, exist_ok=True)
        table = pd.DataFrame(dataclasses.asdict(row) for row in rows)
        table.assign(machine=machine).to_csv(options.csv, index=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
