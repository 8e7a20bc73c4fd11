"""Measure where bfloat16 pays on this processor, and write its rows of the table that jobs read.

python tests/benchmarks/precision.py [--dry-run] [--small] [--busy]

`precision: auto` decides by ltpipe/training/precisions.csv, which has a row for each kind of
processor and of work. Rows of other kinds stay as they are, but for processors without bfloat16:
every x86-64 machine can stand in for one, by oneDNN's and torch's own switches.
"""

from __future__ import annotations

import argparse
import csv
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
import ceilings
import stage1
from measure import CPU, count_cpu_time, machine, seconds_of

from ltpipe.features.extract import embedder
from ltpipe.losses.softmax import CrossEntropyLoss
from ltpipe.models.resnet import resnet32
from ltpipe.training.devices import PRECISIONS, units
from ltpipe.training.engine import train

NAMES = {"fp32": torch.float32, "bf16": torch.bfloat16}
COLUMNS = ("units", "work", "fp32", "bf16", "unit", "machine")
# What makes a processor compute as one without units for bfloat16.
PLAIN = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}


def training_rate(name: str, samples: int) -> float:
    """Return images a second of training a ResNet-32 on images of CIFAR's shape."""
    _, labels, batches = stage1.cifar(samples)
    data = stage1.training_set(batches, labels)
    settings = stage1.settings_of().model_copy(update={"precision": name, "epochs": 2})
    history = train(resnet32(10), CrossEntropyLoss(), data, settings, seed=0, device=CPU)
    return samples / min(record.seconds for record in history)


def extraction_rate(name: str, samples: int) -> float:
    """Return images a second of embedding by the same network."""
    _, _, batches = stage1.cifar(samples)
    embed = embedder(resnet32(10).eval(), stage1.PIXELS, NAMES[name], CPU)

    @torch.inference_mode()
    def epoch() -> None:
        for batch in batches.epoch(torch.arange(samples), 256, None):
            embed(batch)

    epoch()
    return samples / min(seconds_of(epoch) for _ in range(3))


def product_rate(name: str, samples: int) -> float:
    """Return operations a second of a square product as wide as the features of a ResNet-50."""
    return ceilings.matrix_product(NAMES[name], min(2048, samples))


WORKS: dict[str, tuple[Callable[[str, int], float], str]] = {
    "training": (training_rate, "images/s"),
    "extraction": (extraction_rate, "images/s"),
    "products": (product_rate, "operations/s"),
}


def measured(kind: str, samples: int) -> list[dict[str, str]]:
    """Return this process's rows of the table, as those of processors of `kind`."""
    return [
        {
            "units": kind,
            "work": work,
            **{name: f"{rate(name, samples):.4g}" for name in NAMES},
            "unit": unit,
            "machine": machine(),
        }
        for work, (rate, unit) in WORKS.items()
    ]


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--dry-run", action="store_true", help="write nothing")
    parser.add_argument("--small", action="store_true", help="sizes for tests")
    parser.add_argument(
        "--busy", action="store_true", help="on a busy machine: CPU time of one thread"
    )
    parser.add_argument("--as-plain", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.busy:
        count_cpu_time()
    samples = 256 if options.small else 2560
    rows = measured("none" if options.as_plain else units(), samples)
    out = csv.DictWriter(sys.stdout, COLUMNS)
    if options.as_plain:
        out.writerows(rows)
        return
    if units() != "none":
        again = [sys.executable, __file__, "--as-plain", *(["--small"] if options.small else [])]
        shown = subprocess.run(
            again, env={**os.environ, **PLAIN}, capture_output=True, text=True, check=True
        ).stdout
        plain = list(csv.DictReader(shown.splitlines(), COLUMNS))
        rows += [{**row, "machine": f"{row['machine']}, as AVX2"} for row in plain]
    new = {row["units"] for row in rows}
    with PRECISIONS.open(encoding="utf-8", newline="") as file:
        kept = [row for row in csv.DictReader(file) if row["units"] not in new]
    table = sorted([*kept, *rows], key=lambda row: row["units"])
    out.writeheader()
    out.writerows(table)
    if not options.dry_run:
        with PRECISIONS.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(table)


if __name__ == "__main__":
    main()
