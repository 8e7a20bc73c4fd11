"""Measure ltpipe's hot loops beside the usual ones, and print the ratios.

python tests/benchmarks/run.py [--quick | --full] [--busy] [--only NAME ...] [--csv PATH]
python tests/benchmarks/run.py --history [--csv PATH]

Product and peer alternate on at most two cores, the best round of each counts. Machines differ and
are noisy: read the ratios. `share` is the part of the row's ceiling that the product makes use of;
ceilings are measured first.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
import ceilings
import gradients
import heads
import history
import runs
import stage1
import stage2
import storage
from measure import REPOSITORY, THREADS, Result, Run, count_cpu_time, machine

SUITES: dict[str, Callable[[Run], Iterator[Result]]] = {
    "ecvl": stage2.ecvl,
    "filter": stage2.dlsa_filter,
    "augmentation": stage1.augmentation,
    "training": stage1.training,
    "extraction": stage1.extraction,
    "clustering": stage1.clustering,
    "sweep": stage2.sweep,
    "large": stage2.large,
    "gradients": gradients.gradients,
    "gda": heads.gaussians,
    "decays": heads.decays,
    "optimizer": stage2.optimizer,
    "write": storage.writing,
    "read": storage.reading,
    "snakemake": runs.overhead,
    "demo": runs.demo,
}
# Too long to be measured unless it is asked for.
LONG = ("demo",)
RESULTS = REPOSITORY / "data/results/benchmark_cpu.csv"


def number(value: float | None) -> str:
    """Return a number with decimals that suit its size; nothing for none."""
    return "" if value is None else f"{value:,.{1 if value >= 10 else 3}f}"


def line(result: Result, share: float | None) -> str:
    """Return a row of the table."""
    ratio = "" if result.ratio is None else f"{result.ratio:.2f}"
    goal = "" if result.goal is None else f"{result.goal:g}"
    part = "" if share is None else f"{share:.1%}"
    return (
        f"{result.name:<36}{result.unit:>10}{number(result.product):>12}{number(result.peer):>12}"
        f"{ratio:>8}{goal:>6}{part:>8}  {result.ceiling or '':<26}{result.remark}"
    ).rstrip()


def limits_of(quick: bool) -> tuple[dict[str, float], list[Result]]:
    """Return the ceilings, and as rows."""
    limits = ceilings.measure(quick)
    units = {"product": "GFLOP/s"}
    rows = [
        Result(f"ceiling: {name}", units.get(name.split()[0], "GB/s"), value / 1e9)
        for name, value in limits.items()
    ]
    return limits, rows


def main() -> None:
    """Run the suites and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    extent = parser.add_mutually_exclusive_group()
    extent.add_argument("--quick", action="store_true", help="smaller sizes, no compile")
    extent.add_argument(
        "--full", action="store_true", help="all 11 peers of the sweep, and the default experiment"
    )
    parser.add_argument(
        "--busy",
        action="store_true",
        help="on a busy machine: CPU time of one thread, which says nothing of disks",
    )
    parser.add_argument("--only", nargs="+", choices=SUITES, help="default: all but demo")
    parser.add_argument("--csv", type=Path, help="add the rows to this file")
    parser.add_argument(
        "--history", action="store_true", help="print how each ratio moved, measure nothing"
    )
    options = parser.parse_args()
    if options.history:
        history.show(options.csv or RESULTS)
        return
    if options.csv is not None:
        history.check(options.csv)
    torch.set_num_threads(THREADS)
    if options.busy:
        count_cpu_time()
    chosen = options.only or [name for name in SUITES if options.full or name not in LONG]
    print(machine())
    print(
        f"{'what':<36}{'unit':>10}{'ltpipe':>12}{'peer':>12}{'ratio':>8}{'goal':>6}{'share':>8}"
        "  of the ceiling            remark"
    )
    limits, rows = limits_of(options.quick)
    run = Run(options.quick, options.full, limits)
    for row in rows:
        print(line(row, None), flush=True)
    for name in chosen:
        for result in SUITES[name](run):
            print(line(result, run.share(result)), flush=True)
            rows.append(result)
    if options.csv is not None:
        shares = [run.share(result) for result in rows]
        history.append(options.csv, history.table_of(rows, shares, run.extent))


if __name__ == "__main__":
    main()
