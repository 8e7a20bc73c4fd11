"""Measure how the cost of each cached loop grows with each of its sizes, and what that means large.

python tests/benchmarks/scale.py [--tiny] [--only NAME ...] [--output FOLDER]

Every size but one keeps its base value. A slope is that of seconds over size, both logarithmic, by
least squares: 1 is proportional, less means that a part of the cost does not grow. One thread. The
tables are written as scaling.csv and scaling.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import torch

sys.path.insert(0, str(Path(__file__).parent))
import ceilings
import stage1
import storage
from measure import CPU, REPOSITORY, PeakMemory, machine, one_thread, seconds_of, version

from ltpipe.artifacts.job import Job
from ltpipe.config.backbones import FeatureSettings
from ltpipe.data.loading import ImageSplit
from ltpipe.data.subset import Subset
from ltpipe.features import extract
from ltpipe.features.store import FeatureStore
from ltpipe.losses.softmax import CrossEntropyLoss
from ltpipe.models.flow import FlowMixture
from ltpipe.models.resnet import resnet32
from ltpipe.stage2.core.batches import Rows, Sampling
from ltpipe.stage2.core.classifiers import fit_classifiers
from ltpipe.stage2.core.fit import Recipe
from ltpipe.stage2.core.settings import FlowFilter
from ltpipe.stage2.dlsa.filter import train_flow
from ltpipe.training.devices import precision
from ltpipe.utils.memory import keep_freed_memory
from ltpipe.utils.seeding import generator

# Ten million images and their features of a ResNet-50, as many classes as ImageNet-21k has about.
HUGE = (10_000_000, 2048, 10_000)


@dataclasses.dataclass(frozen=True)
class Loop:
    """One loop: what it does at given sizes, their base values, and those that are tried.

    `prepare` makes the inputs and returns the call that is measured.
    """

    prepare: Callable[..., Callable[[], Any]]
    base: dict[str, int]
    tried: dict[str, Sequence[int]]


def random_store(images: int, classes: int, dimensions: int, views: int) -> FeatureStore:
    """Return random features in memory; every class has as many images."""
    draws = np.random.default_rng(0)
    labels = np.arange(images) % classes
    return FeatureStore(
        path=Path("random"),
        features=draws.standard_normal((images, dimensions), dtype=np.float32),
        labels=labels,
        index=np.arange(images),
        class_counts=np.bincount(labels, minlength=classes).tolist(),
        class_names=[str(label) for label in range(classes)],
        views=draws.standard_normal((views, images, dimensions), dtype=np.float32),
    )


def stage_two(
    images: int, classes: int, dimensions: int, views: int, models: int
) -> Callable[[], Any]:
    """One epoch of linear classifiers of `models` learning rates on cached views."""
    store = random_store(images, classes, dimensions, views)
    rates = tuple(0.1 / (place + 1) for place in range(models))
    recipe = Recipe(1, 128, rates, "cosine", 0.9, 5e-4)
    return lambda: fit_classifiers(store, CrossEntropyLoss(), recipe, Sampling(), 0, CPU)


def flow_filter(images: int, dimensions: int, clusters: int) -> Callable[[], Any]:
    """One epoch of a filter, batches of 256 pairs."""
    keep_freed_memory()
    features = torch.randn(images, dimensions, generator=generator(0, "x"))
    labels = torch.arange(images) % 10
    settings = FlowFilter(clusters=clusters, epochs=1, batch_size=256)

    def call() -> None:
        flow = FlowMixture(dimensions, clusters, generator=generator(0, "flow"))
        train_flow(flow, features, labels, 10, settings, seed=0, block=1)

    return call


def dump(images: int, views: int) -> Callable[[], Any]:
    """Embed images of CIFAR's shape by a ResNet-32 and write the file, as `ltpipe embed` does."""
    _, labels, batches = stage1.cifar(images)
    index, none = np.arange(images), np.empty(0, np.int64)
    split = ImageSplit(batches, labels, index, stage1.PIXELS, 3)
    counts = labels.bincount(minlength=10).clamp_min(1).tolist()
    names = [str(label) for label in range(10)]
    subset = Subset(
        names, counts, index, labels.numpy(), none, none, none, none, "val", "", 0, None, ""
    )
    settings = FeatureSettings(views=views)
    backbone = stage1.settings_of()
    dtype = precision("auto", CPU, "extraction")

    @torch.inference_mode()
    def call() -> None:
        with storage.folder() as base:
            (base / "model.safetensors").write_bytes(b"random")
            job = Job({"seed": 0}, {"stage1": base}, base, CPU)
            given = (settings, backbone, subset, dtype, {})
            extract._write_split(job, "train", split, resnet32(10), *given)

    return call


def written(images: int, dimensions: int, views: int) -> Callable[[], Any]:
    """Write a feature file, synced."""
    store = random_store(images, 10, dimensions, views)

    def call() -> None:
        with storage.folder() as base:
            storage.write(base / "a.h5", store)

    return call


def opened(images: int, dimensions: int, views: int) -> Callable[[], Any]:
    """Open a feature file: read or mapped, every byte checked; from the system's cache."""
    keeper = tempfile.TemporaryDirectory(dir=os.environ.get("LTPIPE_BENCH_DIR"))
    path = Path(keeper.name) / "a.h5"
    storage.write(path, random_store(images, 10, dimensions, views))

    def call(kept: Any = keeper) -> None:
        FeatureStore.open(path)

    return call


_FILE = Loop(
    written,
    {"images": 8000, "dimensions": 256, "views": 2},
    {
        "images": [2000, 8000, 32_000, 128_000],
        "dimensions": [64, 256, 1024, 2048],
        "views": [1, 2, 4, 8],
    },
)
LOOPS: dict[str, Loop] = {
    "stage two, one epoch": Loop(
        stage_two,
        {"images": 8000, "classes": 50, "dimensions": 128, "views": 2, "models": 1},
        {
            "images": [2000, 8000, 32_000, 128_000],
            "classes": [10, 50, 250, 1000],
            "dimensions": [64, 256, 1024, 2048],
            "views": [1, 2, 4, 8],
            "models": [1, 4, 16, 64],
        },
    ),
    "dump, ResNet-32": Loop(
        dump,
        {"images": 512, "views": 1},
        {"images": [256, 512, 1024, 2048], "views": [1, 2, 4, 8]},
    ),
    "feature file, write": _FILE,
    "feature file, open": dataclasses.replace(_FILE, prepare=opened),
    # Last: from then on the process keeps the memory that it frees, as the filter's job does.
    "DLSA filter, one epoch": Loop(
        flow_filter,
        {"images": 2048, "dimensions": 256, "clusters": 100},
        {
            "images": [1024, 2048, 4096, 8192],
            "dimensions": [128, 256, 512, 1024],
            "clusters": [50, 100, 500, 2000],
        },
    ),
}


def tiny(loop: Loop) -> Loop:
    """Return a loop of sizes at which nothing but its running is seen, for tests."""
    base = {name: min(value, 8) for name, value in loop.base.items()}
    base |= {name: 40 for name in ("images",) if name in base}
    sizes = {"images": [24, 32, 40, 48]}
    return Loop(loop.prepare, base, {name: sizes.get(name, [2, 3, 4, 5]) for name in loop.tried})


def slope(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """Return the exponent b of ``cost = a size ** b`` by least squares of the logarithms."""
    x, y = np.log(np.asarray(sizes, float)), np.log(np.asarray(costs, float))
    x = x - x.mean()
    return float((x * (y - y.mean())).sum() / (x * x).sum())


def measured(loop: Loop, rounds: int) -> Iterator[dict[str, Any]]:
    """Yield a row for every size of every axis: its seconds, and its peak memory."""
    for axis, sizes in loop.tried.items():
        for size in sizes:
            call = loop.prepare(**{**loop.base, axis: size})
            # The first call pays for what every later one finds.
            with PeakMemory() as peak:
                first = seconds_of(call)
            seconds = min([first, *(seconds_of(call) for _ in range(rounds))])
            yield {
                "axis": axis,
                "size": size,
                "seconds": seconds,
                "peak_megabytes": max(peak.megabytes, 0.0),
            }


def slopes(table: pd.DataFrame) -> pd.DataFrame:
    """Return a row for each loop and axis: its sizes, costs and slope."""
    rows = []
    for (loop, axis), group in table.groupby(["loop", "axis"], sort=False):
        rows.append(
            {
                "loop": loop,
                "axis": axis,
                "sizes": ", ".join(f"{size:,}" for size in group["size"]),
                "seconds": ", ".join(f"{seconds:.3g}" for seconds in group["seconds"]),
                "peak MB": ", ".join(f"{peak:,.0f}" for peak in group["peak_megabytes"]),
                "slope": f"{slope(group['size'], group['seconds']):.2f}",
            }
        )
    return pd.DataFrame(rows)


def huge(small: bool) -> dict[str, float]:
    """Return what HUGE would take, from rates measured at its dimensions and classes."""
    images, dimension, classes = HUGE
    batch, kept = (64, 256) if small else (512, 32_768)
    made = (16, 10) if small else (dimension, classes)
    # Steps enough that drawing the first weights is little beside them.
    steps = 20
    store = random_store(steps * batch, made[1], made[0], 1)
    recipe, sampling = Recipe(1, batch, 0.1, "cosine", 0.9, 5e-4), Sampling("plain")
    loss = CrossEntropyLoss()
    seconds = min(
        seconds_of(lambda: fit_classifiers(store, loss, recipe, sampling, 0, CPU)) for _ in range(2)
    )
    _, disk = ceilings.disk(16 if small else 512)
    with storage.folder() as base:
        storage.write(base / "a.h5", random_store(kept, 10, dimension, 1))
        table = Rows(_mapped(base / "a.h5"))
        order = torch.randperm(kept, generator=generator(0, "order"))[: 20 * 64]
        cold = len(order) / seconds_of(lambda: [table.gather(part) for part in order.split(64)])
        warm = len(order) / min(
            seconds_of(lambda: [table.gather(part) for part in order.split(64)]) for _ in range(2)
        )
    size = images * dimension * 4
    return {
        "bytes": size,
        "epoch by products, s": seconds * images / (steps * batch),
        "epoch by cached shuffled rows, s": images / warm,
        "epoch by cold shuffled rows, s": images / cold,
        "epoch by reading the disk in order, s": size / disk,
    }


def _mapped(path: Path) -> torch.Tensor:
    """Map the features of a file of which no part is cached."""
    with h5py.File(path, "r") as file:
        offset, shape = file["features"].id.get_offset(), file["features"].shape
    if hasattr(os, "posix_fadvise"):
        with path.open("rb") as handle:
            os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return torch.from_numpy(np.memmap(path, np.float32, "r", offset, shape))


def page(table: pd.DataFrame, found: dict[str, float]) -> str:
    """Return the tables as Markdown."""
    rows = slopes(table)
    images, dimension, classes = HUGE
    lines = [
        "# How costs grow",
        "",
        f"`python tests/benchmarks/scale.py`, one thread, version {version()}. {machine()}.",
        "",
        "Every size but one keeps its base value: "
        + "; ".join(
            f"{name}: " + ", ".join(f"{value:,} {axis}" for axis, value in loop.base.items())
            for name, loop in LOOPS.items()
        )
        + ". The slope is that of seconds over size, both logarithmic, by least squares: 1 is "
        "proportional. Peak memory is beside the inputs.",
        "",
        "| " + " | ".join(rows.columns) + " |",
        "| --- | --- | --- | --- | --- | ---: |",
        *("| " + " | ".join(row) + " |" for row in rows.itertuples(index=False)),
        "",
        f"## {images:,} images, {dimension:,} dimensions, {classes:,} classes",
        "",
        f"Features of that size take {found['bytes'] / 1e9:,.0f} GB in float32, more than memory, "
        "so the file is mapped (from 256 MiB on) and never read whole; "
        "`tests/stage2/test_memory_limit.py` holds that stage two runs with less memory than its "
        "features have. One epoch of one linear classifier would take, by rates measured at this "
        "number of dimensions and classes:",
        "",
        "| bound by | seconds | hours |",
        "| --- | ---: | ---: |",
        *(
            f"| {name.removeprefix('epoch by ').removesuffix(', s')} | {value:,.0f} | "
            f"{value / 3600:,.1f} |"
            for name, value in found.items()
            if name != "bytes"
        ),
        "",
        "Products are those of batches of 512. Rows are those of a file that the system caches, "
        "and of one that it does not: then a shuffled epoch is bound by single reads "
        "of the disk, and the largest of these numbers is the time.",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure, print and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tiny", action="store_true", help="sizes for tests")
    parser.add_argument("--only", nargs="+", choices=LOOPS, default=list(LOOPS))
    parser.add_argument(
        "--output", type=Path, default=REPOSITORY / "data/results", help="default: data/results"
    )
    options = parser.parse_args()
    rows = []
    # What is imported stays: each round's collection of garbage need not look through it.
    gc.freeze()
    with one_thread():
        for name in options.only:
            loop = tiny(LOOPS[name]) if options.tiny else LOOPS[name]
            for row in measured(loop, 0 if options.tiny else 1):
                rows.append({"loop": name, **row})
                print(
                    f"{name:<26}{row['axis']:<12}{row['size']:>9,}{row['seconds']:>10.4f} s"
                    f"{row['peak_megabytes']:>9,.0f} MB",
                    flush=True,
                )
        found = huge(options.tiny)
    table = pd.DataFrame(rows)
    options.output.mkdir(parents=True, exist_ok=True)
    table.assign(version=version(), machine=machine()).to_csv(
        options.output / "scaling.csv", index=False
    )
    text = page(table, found)
    (options.output / "scaling.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
