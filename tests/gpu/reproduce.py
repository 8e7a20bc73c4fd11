"""Run the papers' experiments in order of value until time is up; what is finished stays.

python tests/gpu/reproduce.py --minutes 120 [--folder DIR] [--cores N] [--list]

Each is one `ltpipe run` in a folder of its own. One that is cut short goes on from its checkpoints
when this is started again. A line an experiment is added to DIR/reproduced.csv.
"""

from __future__ import annotations

import argparse
import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
# What says most for its time first: whole published tables on small images, then large ones.
ORDER = (
    "cifar10_full",
    "ffn",
    "cws",
    "hrjba",
    "dlsa_cifar10",
    "decoupling",
    "dlsa",
    "ecvl",
)


def run(name: str, folder: Path, cores: int, seconds: float) -> str:
    """Run an experiment for at most so long; return how it ended."""
    home = folder / name
    home.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "ltpipe", "run"]
    command += [str(REPOSITORY / f"config/experiments/{name}.yaml"), "--cores", str(cores)]
    with (home / "run.log").open("a") as log:
        # Of its own group: Snakemake's jobs end with it.
        job = subprocess.Popen(
            command,
            cwd=home,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        )
        try:
            return "finished" if job.wait(seconds) == 0 else f"failed ({home}/run.log)"
        except subprocess.TimeoutExpired:
            os.killpg(job.pid, signal.SIGTERM)
            try:
                job.wait(60)
            except subprocess.TimeoutExpired:
                os.killpg(job.pid, signal.SIGKILL)
                job.wait()
            return "cut short, goes on when started again"


def main() -> None:
    """Run what there is time for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=120)
    parser.add_argument("--folder", type=Path, default=Path("reproduced"))
    parser.add_argument("--cores", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--only", nargs="+", default=list(ORDER), metavar="EXPERIMENT")
    parser.add_argument("--list", action="store_true", help="print the order and end")
    options = parser.parse_args()
    known = {path.stem for path in (REPOSITORY / "config/experiments").glob("*.yaml")}
    chosen = [name for name in options.only if name in known]
    if options.list:
        print("\n".join(chosen))
        return
    options.folder.mkdir(parents=True, exist_ok=True)
    ends = time.monotonic() + 60 * options.minutes
    for name in chosen:
        left = ends - time.monotonic()
        if left < 60:
            print("time is up")
            return
        started = time.monotonic()
        ended = run(name, options.folder.absolute(), options.cores, left)
        minutes = (time.monotonic() - started) / 60
        with (options.folder / "reproduced.csv").open("a", newline="") as file:
            csv.writer(file).writerow([name, f"{minutes:.1f}", ended])
        print(f"{name}: {ended}, {minutes:.1f} minutes", flush=True)


if __name__ == "__main__":
    main()
