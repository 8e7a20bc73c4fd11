"""Profile a few steps of each hot loop: the operators that take most, and what is overhead.

python tests/benchmarks/profiling.py [--tiny] [--only NAME ...] [--top 12] [--threads 1]

Times are self times on the CPU, in a share of all of the loop's wall time. `overhead` is what no
operator accounts for: the interpreter, autograd's engine, waiting. `calls` is operators a step, and
`cleared` page faults a step, each of which clears four kilobytes.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

sys.path.insert(0, str(Path(__file__).parent))
import phase2
import scale
import stage1
import stage2

from ltpipe.data.longtail import class_counts
from ltpipe.features.extract import embedder
from ltpipe.losses.softmax import CrossEntropyLoss
from ltpipe.models.resnet import resnet32
from ltpipe.stage1.cws.clustering import Clustering
from ltpipe.stage1.cws.subclasses import PRESETS
from ltpipe.stage2.core.batches import Sampling
from ltpipe.stage2.core.classifiers import fit_classifiers
from ltpipe.stage2.core.fit import Recipe
from ltpipe.training.devices import CPU, precision
from ltpipe.training.engine import SupervisedTask
from ltpipe.utils.seeding import generator

# A loop's work, and how many steps it has.
Work = tuple[Callable[[], object], int]


def training_step(tiny: bool) -> Work:
    samples = 64 if tiny else 512
    _, labels, batches = stage1.cifar(samples)
    data = stage1.training_set(batches, labels)
    task = SupervisedTask(resnet32(10), CrossEntropyLoss(), data, stage1.settings_of(), 0, CPU)
    return lambda: task.run_epoch(0, 0.1), -(-samples // 128)


def extraction(tiny: bool) -> Work:
    samples = 64 if tiny else 1024
    _, _, batches = stage1.cifar(samples)
    embed = embedder(resnet32(10).eval(), stage1.PIXELS, precision("auto", CPU, "extraction"), CPU)

    @torch.inference_mode()
    def call() -> None:
        for batch in batches.epoch(torch.arange(samples), 256, None):
            embed(batch)

    return call, -(-samples // 256)


def sweep_step(tiny: bool) -> Work:
    counts = class_counts(10, 40 if tiny else 500, 10 if tiny else 100)
    tables, labels = stage2.centred_features(counts, [0])
    return lambda: stage2.sweep_fit(tables, labels, counts, 1), -(-len(labels) // 64)


def large_step(tiny: bool) -> Work:
    samples, classes, dimensions = (128, 10, 16) if tiny else (1280, 1000, 2048)
    store = scale.random_store(samples, classes, dimensions, 1)
    recipe, sampling = Recipe(1, 64, 0.1, "cosine", 0.9, 5e-4), Sampling("plain")
    loss = CrossEntropyLoss()
    return lambda: fit_classifiers(store, loss, recipe, sampling, 0, CPU), samples // 64


def filter_step(tiny: bool) -> Work:
    images, dimensions, clusters = (64, 16, 4) if tiny else (1024, 2048, 500)
    return scale.flow_filter(images, dimensions, clusters), -(-images // 256)


def ecvl_step(tiny: bool) -> Work:
    with tempfile.TemporaryDirectory() as folder:
        store = phase2.features_of("small-resnet", Path(folder))
    fit = phase2.cached_fit(store)
    # The first epoch has no memory yet, and so no RandAugment.
    fit.run_epoch(0, 0.1)
    return lambda: fit.run_epoch(1, 0.1), -(-len(store.labels) // phase2.METHOD["batch_size"])


def clustering_step(tiny: bool) -> Work:
    rounds = 2 if tiny else 50
    split = Clustering(PRESETS["paper-18"], 64)
    features = torch.randn(rounds, 128, 64, generator=generator(0, "features"))
    labels = torch.randint(10, (rounds, 128), generator=generator(0, "labels"))

    def call() -> None:
        for batch, target in zip(features, labels, strict=True):
            split.assign(batch, target)

    return call, rounds


LOOPS: dict[str, Callable[[bool], Work]] = {
    "training": training_step,
    "extraction": extraction,
    "sweep": sweep_step,
    "large": large_step,
    "ecvl": ecvl_step,
    "clustering": clustering_step,
    # Last: from then on the process keeps the memory that it frees, as the filter's job does.
    "filter": filter_step,
}


def report(name: str, work: Work, top: int) -> list[str]:
    """Profile one loop and return its lines.

    Seconds and page faults come from a run without the profiler, which makes small operators look
    slower than they are. What profiling adds is part of the overhead that it shows.
    """
    call, steps = work
    call()
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    started = time.perf_counter()
    call()
    seconds = time.perf_counter() - started
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
    started = time.perf_counter()
    with profile(activities=[ProfilerActivity.CPU]) as found:
        call()
    profiled = (time.perf_counter() - started) * 1e6
    rows = sorted(found.key_averages(), key=lambda row: -row.self_cpu_time_total)
    counted = sum(row.self_cpu_time_total for row in rows)
    calls = sum(row.count for row in rows)
    overhead = max(0.0, 1 - counted / profiled)
    lines = [
        f"{name}: {1e3 * seconds / steps:.3f} ms, {calls / steps:.0f} operators and "
        f"{faults / steps:.0f} pages cleared a step, overhead {overhead:.0%}"
    ]
    for row in rows[:top]:
        lines.append(
            f"  {row.key[:48]:<48}{row.self_cpu_time_total / profiled:>7.1%}"
            f"{row.count / steps:>8.1f} calls a step"
        )
    return lines


def main() -> None:
    """Print each loop's profile."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tiny", action="store_true", help="sizes for tests")
    parser.add_argument("--only", nargs="+", choices=LOOPS, default=list(LOOPS))
    parser.add_argument("--top", type=int, default=12)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for name in options.only:
        print(*report(name, LOOPS[name](options.tiny), options.top), sep="\n", flush=True)


if __name__ == "__main__":
    main()
