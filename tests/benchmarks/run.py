"""Measure ltpipe's hot loops beside the usual ones, in one process, and print the ratios.

python tests/benchmarks/run.py [--quick | --full] [--only NAME ...] [--csv PATH]

Product and peer alternate on at most two cores, the best round of each counts. Machines differ and
are noisy: read the ratios.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch

sys.path.insert(0, str(Path(__file__).parent))
import flow
import peers
import phase2

from ltpipe.config.backbones import Backbone
from ltpipe.data.augment import Augmentation
from ltpipe.data.images import ArrayImages, ImageBatches, open_batches
from ltpipe.data.loading import Pixels
from ltpipe.data.longtail import class_counts
from ltpipe.features.extract import embedder
from ltpipe.features.store import write_features
from ltpipe.losses.margin import LDAMLoss
from ltpipe.losses.softmax import CrossEntropyLoss
from ltpipe.models.resnet import resnet32
from ltpipe.seeding import generator
from ltpipe.stage2.batches import FusedBatches
from ltpipe.stage2.classifiers import CosineModel
from ltpipe.stage2.fit import Recipe, fit
from ltpipe.stage2.logit_gradients import logit_gradient
from ltpipe.training.devices import precision
from ltpipe.training.engine import (
    Epoch,
    Steps,
    SupervisedTask,
    TrainingSet,
    drain,
    epoch_steps,
    train,
)
from ltpipe.training.turns import take_turns

CPU = torch.device("cpu")
COEFFICIENTS = torch.linspace(0, 1, 11)
PIXELS = Pixels([0.4914, 0.4822, 0.4465], [0.2023, 0.1994, 0.2010])


@dataclasses.dataclass
class Result:
    """One line of the table."""

    name: str
    unit: str
    product: float
    peer: float
    goal: float | None = None
    remark: str = ""

    @property
    def ratio(self) -> float:
        return self.product / self.peer


def alternate(
    product: Callable[[], float], peer: Callable[[], float], rounds: int
) -> tuple[float, float]:
    """Return the least seconds of each, measured in turn."""
    ours, theirs = [], []
    for _ in range(rounds):
        ours.append(product())
        theirs.append(peer())
    return min(ours), min(theirs)


def cifar(samples: int) -> tuple[np.ndarray, torch.Tensor, ImageBatches]:
    """Return random images of CIFAR's shape, labels, and the product's batches of them."""
    stream = np.random.default_rng(0)
    images = stream.integers(0, 256, (samples, 32, 32, 3), dtype=np.uint8)
    labels = torch.from_numpy(stream.integers(0, 10, samples))
    augmentation = Augmentation((32, 32), padding=4, flip=True)
    return images, labels, open_batches(ArrayImages(images), np.arange(samples), augmentation, CPU)


def stage_one(compiled: bool = False) -> Backbone:
    """Return the settings of the measured trainings."""
    return Backbone.model_validate(
        {
            "network": "resnet32",
            "loss": {"name": "ce"},
            "epochs": 3 if compiled else 1,
            "batch_size": 128,
            "compile": compiled,
            "schedule": {"kind": "constant", "warmup": 0},
        }
    )


def our_epoch(batches: ImageBatches, labels: torch.Tensor, compiled: bool) -> Callable[[], float]:
    """Return a function that trains a fresh network and gives its fastest epoch's seconds."""
    settings = stage_one(compiled)

    def measure() -> float:
        history = train(
            resnet32(10),
            CrossEntropyLoss(),
            TrainingSet(batches, labels, PIXELS, [len(labels) // 10] * 10),
            settings,
            seed=0,
            device=CPU,
        )
        return min(record.seconds for record in history)

    return measure


def training(quick: bool) -> Iterator[Result]:
    samples = 1280 if quick else 2560
    images, labels, batches = cifar(samples)
    our_epoch(batches, labels, False)()
    peers.train_epoch(resnet32(10), images[:256], labels[:256], 128)
    ours, theirs = alternate(
        our_epoch(batches, labels, False),
        lambda: peers.train_epoch(resnet32(10), images, labels, 128),
        2 if quick else 3,
    )
    yield Result("stage one, ResNet-32", "images/s", samples / ours, samples / theirs, 2.2)
    if not quick:
        compiled = our_epoch(batches, labels, True)()
        again = peers.train_epoch(resnet32(10), images, labels, 128)
        peer = samples / min(theirs, again)
        yield Result(
            "stage one, compiled", "images/s", samples / compiled, peer, 2.7, "after warm-up"
        )


def extraction(quick: bool) -> Iterator[Result]:
    samples = 2560 if quick else 7680
    images, labels, batches = cifar(samples)
    network = resnet32(10).eval()
    embed = embedder(network, PIXELS, precision("auto", CPU), CPU)

    def ours() -> float:
        started = time.perf_counter()
        with torch.inference_mode():
            torch.cat([embed(b) for b in batches.epoch(torch.arange(samples), 256, None)])
        return time.perf_counter() - started

    ours()
    product, peer = alternate(ours, lambda: peers.embed(network, images, labels, 256), 3)
    yield Result("embedding, ResNet-32", "images/s", samples / product, samples / peer, 3.0)


def augmentation(quick: bool) -> Iterator[Result]:
    samples = 5120 if quick else 25600
    images, labels, batches = cifar(samples)

    def ours() -> float:
        draws = generator(0, "bench")
        started = time.perf_counter()
        for _ in batches.epoch(torch.randperm(samples), 128, draws):
            pass
        return time.perf_counter() - started

    product, peer = alternate(ours, lambda: peers.load_epoch(images, labels, 128), 2)
    yield Result("crop and flip", "images/s", samples / product, samples / peer)


def centred_features(
    counts: list[int], seeds: Iterable[int]
) -> tuple[dict[tuple[str, int], torch.Tensor], torch.Tensor]:
    """Return one view (1, N, 64) of each branch's and seed's features, and labels (N,)."""
    labels = torch.repeat_interleave(torch.arange(10), torch.tensor(counts))
    centres = torch.randn(10, 64, generator=generator(0, "centres"))
    tables = {
        (branch, seed): (
            centres[labels]
            + torch.randn(len(labels), 64, generator=generator(seed, "features", branch))
        )[None]
        for branch in ("kps", "ce")
        for seed in seeds
    }
    return tables, labels


def sweep_fit(
    tables: dict[tuple[str, int], torch.Tensor],
    labels: torch.Tensor,
    counts: list[int],
    epochs: int,
    device: torch.device = CPU,
) -> None:
    """Fit FFN's classifiers of 11 coefficients x 3 seeds."""
    start = torch.randn(10, 64, generator=generator(0, "start")).expand(33, -1, -1)
    batches = FusedBatches(
        [tables["kps", seed].to(device) for seed in range(3)],
        [tables["ce", seed].to(device) for seed in range(3)],
        labels,
        COEFFICIENTS.to(device),
        [0, 1, 2],
        classes=10,
        sampler="balanced",
        batch_size=64,
    )
    model = CosineModel(logit_gradient(LDAMLoss(counts), device=device))
    recipe = Recipe(epochs, 64, 0.1, "cosine", 0.9, 2e-4)
    fit({"weight": start.to(device, copy=True)}, model, batches, recipe)


def sweep(quick: bool, full: bool = False) -> Iterator[Result]:
    counts = class_counts(10, 5000, 100)
    tables, labels = centred_features(counts, range(3))
    epochs = 5 if quick else 30

    def ours() -> float:
        started = time.perf_counter()
        sweep_fit(tables, labels, counts, epochs)
        return time.perf_counter() - started

    def lone(seed: int, w1: float) -> float:
        kps, ce = tables["kps", seed][0], tables["ce", seed][0]
        return peers.lone_fusion_run(kps, ce, labels, counts, w1, epochs)

    def theirs() -> float:
        if not full:
            return 33 * lone(0, 0.5)
        return sum(lone(seed, w1) for seed in range(3) for w1 in COEFFICIENTS.tolist())

    # Small operations gain nothing from a second thread, on either side.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    product, peer = alternate(ours, theirs, 1 if full else 2)
    torch.set_num_threads(threads)
    remark = "peer: 33 runs" if full else f"peer: one run of {peer / 33:.2f} s, times 33"
    yield Result(
        f"FFN sweep, 33 models, {epochs} epochs",
        "models/s",
        33 / product,
        33 / peer,
        15.0,
        remark,
    )


def together(quick: bool) -> Iterator[Result]:
    """Four seeds that take turns beside four runs, on the CPU."""
    samples = 256 if quick else 1280
    _, labels, batches = cifar(samples)

    def steps(seed: int) -> Steps[list[Epoch]]:
        torch.manual_seed(seed)
        data = TrainingSet(batches, labels, PIXELS, [samples // 10] * 10)
        settings = stage_one()
        task = SupervisedTask(resnet32(10), CrossEntropyLoss(), data, settings, seed, CPU)
        return epoch_steps(task, settings, samples)

    def at_once() -> float:
        started = time.perf_counter()
        take_turns([steps(seed) for seed in range(4)], CPU, lambda place, result: None)
        return time.perf_counter() - started

    def alone() -> float:
        started = time.perf_counter()
        for seed in range(4):
            drain(steps(seed))
        return time.perf_counter() - started

    product, peer = alternate(at_once, alone, 2)
    yield Result(
        "4 seeds at once, ResNet-32",
        "images/s",
        4 * samples / product,
        4 * samples / peer,
        remark="peer: 4 lone runs; a CPU is full with one",
    )


def store(quick: bool) -> Iterator[Result]:
    samples = 20_000 if quick else 115_846
    features = np.random.default_rng(0).random((samples, 2048), dtype=np.float32)
    labels = np.zeros(samples, np.int64)
    volume = features.nbytes / 1e6
    with tempfile.TemporaryDirectory(dir=os.environ.get("LTPIPE_BENCH_DIR")) as folder:
        path = Path(folder)

        def ours() -> float:
            started = time.perf_counter()
            write_features(
                path / "a.h5",
                features=features,
                labels=labels,
                class_names=["a"],
                class_counts=[samples],
            )
            seconds = time.perf_counter() - started
            (path / "a.h5").unlink()
            return seconds

        def theirs() -> float:
            started = time.perf_counter()
            with (path / "b.npy").open("wb") as handle:
                np.save(handle, features)
                handle.flush()
                os.fsync(handle.fileno())
            seconds = time.perf_counter() - started
            (path / "b.npy").unlink()
            return seconds

        product, peer = alternate(ours, theirs, 3)
    yield Result("HDF5 write, synced", "MB/s", volume / product, volume / peer, 0.6)


THREADS = min(2, torch.get_num_threads())


def dlsa_filter(quick: bool) -> Iterator[Result]:
    """Each form runs in a process of its own, so that peaks of memory are its own."""
    found = flow.filter_step(quick)
    yield Result(
        "DLSA filter step, 2048-d, 500 clusters",
        "steps/s",
        1 / found.product.seconds,
        1 / found.peer.seconds,
        15.0,
        f"peak memory {found.product.megabytes:,.0f} and {found.peer.megabytes:,.0f} MB",
    )


def ecvl(quick: bool) -> Iterator[Result]:
    """One thread: the steps on cached views are too small for two."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for network in ["small-resnet"] if quick else ["small-resnet", "RN50"]:
        found = phase2.phase2_epoch(network)
        yield Result(
            f"ECVL phase II, {network}",
            "epochs/s",
            1 / found.cached,
            1 / found.online,
            50.0,
            f"peer: towers in the loop; 100 images take {found.latency:.3f} s",
        )
    torch.set_num_threads(threads)


SUITES = {
    "ecvl": ecvl,
    "filter": dlsa_filter,
    "augmentation": augmentation,
    "training": training,
    "together": together,
    "extraction": extraction,
    "sweep": sweep,
    "store": store,
}


def figure(value: float) -> str:
    """Return a rate, right-aligned, with decimals that suit its size."""
    return f"{value:>12,.{1 if value >= 10 else 3}f}"


def machine() -> str:
    """Return processor, cores and versions in one line."""
    model, flags = platform.processor() or platform.machine(), ""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = info.read_text().splitlines()
        model = next((line.split(": ")[1] for line in lines if "model name" in line), model)
        flags = next((line for line in lines if line.startswith("flags")), "")
    matrix_units = "AMX" if "amx_bf16" in flags else "no AMX"
    return (
        f"{model}, {matrix_units}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, "
        f"{str(precision('auto', CPU)).removeprefix('torch.')} by default, "
        f"Python {platform.python_version()}, torch {torch.__version__}"
    )


def main() -> None:
    """Run the suites and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    extent = parser.add_mutually_exclusive_group()
    extent.add_argument("--quick", action="store_true", help="smaller sizes, no compile")
    extent.add_argument("--full", action="store_true", help="run all 33 peers of the sweep")
    parser.add_argument("--only", nargs="+", choices=SUITES, default=list(SUITES))
    parser.add_argument("--csv", type=Path, help="write the table there too")
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    suites = {**SUITES, "sweep": functools.partial(sweep, full=options.full)}
    print(machine())
    rows = []
    print(f"{'what':<34}{'unit':>10}{'ltpipe':>12}{'peer':>12}{'ratio':>8}{'goal':>7}")
    for name in options.only:
        for result in suites[name](options.quick):
            goal = "" if result.goal is None else f"{result.goal:g}"
            print(
                f"{result.name:<34}{result.unit:>10}{figure(result.product)}{figure(result.peer)}"
                f"{result.ratio:>8.2f}{goal:>7}  {result.remark}",
                flush=True,
            )
            rows.append({**dataclasses.asdict(result), "ratio": result.ratio})
    if options.csv is not None:
        options.csv.parent.mkdir(parents=True, exist_ok=True)
        pd.DataFrame(rows).assign(machine=machine()).to_csv(options.csv, index=False)


if __name__ == "__main__":
    main()
