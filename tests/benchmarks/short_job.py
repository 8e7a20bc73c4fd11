"""Measure a short job with the package's SGD beside torch.optim.SGD, each in a fresh process.

python tests/benchmarks/short_job.py [--quick]

The job trains a filter of DLSA as digits-LT has it: 297 samples of 64 dimensions, 30 epochs. The
CPU-seconds are those of the whole process, imports of Python, torch and the package included.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from measure import CPU, in_own_process
from torch import Tensor

from ltpipe.artifacts.job import Job
from ltpipe.data.longtail import class_counts
from ltpipe.features.store import write_features
from ltpipe.stage2.dlsa import filter as flow_filter

FORMS = ("ltpipe", "torch.optim")
FILTER = {
    "clusters": 20,
    "epochs": 30,
    "batch_size": 128,
    "learning_rate": 0.05,
    "likelihood_weight": 0.05,
}


class TorchSGD:
    """torch.optim.SGD with the steps of ours."""

    def __init__(self, parameters: list[Tensor]) -> None:
        self.optimizer = torch.optim.SGD(parameters, lr=1.0, foreach=True)

    def step(self, learning_rate: float) -> None:
        self.optimizer.param_groups[0]["lr"] = learning_rate
        self.optimizer.step()
        self.optimizer.zero_grad()


def short_job(quick: bool) -> tuple[float, float]:
    """Return the median CPU-seconds of a process of each form, started in turn."""
    seconds: dict[str, list[float]] = {form: [] for form in FORMS}
    for _ in range(1 if quick else 5):
        for form, found in seconds.items():
            found.append(float(in_own_process("short_job.py", "--form", form).split()[-1]))
    return statistics.median(seconds["ltpipe"]), statistics.median(seconds["torch.optim"])


def run_job(form: str) -> None:
    """Run the job in this process."""
    torch.set_num_threads(1)
    if form == "torch.optim":
        flow_filter.SGD = TorchSGD
    counts = class_counts(10, 120, 100)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for split in ("train", "test"):
            labels = np.repeat(np.arange(10), counts)
            features = np.random.default_rng(0).standard_normal((len(labels), 64))
            write_features(
                folder / f"{split}.h5",
                features=features.astype(np.float32),
                labels=labels,
                class_names=[str(label) for label in range(10)],
                class_counts=counts,
            )
        spec = {"filter": FILTER, "block": 1, "seed": 0}
        flow_filter.run(Job(spec, {"features": folder}, folder, CPU))


def main() -> None:
    """Print the ratio, or run one form's job and print this process's CPU-seconds."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one process each")
    parser.add_argument("--form", choices=FORMS, help="run this form alone, in this process")
    options = parser.parse_args()
    if options.form:
        run_job(options.form)
        print(time.process_time())
        return
    ours, theirs = short_job(options.quick)
    print(f"ltpipe {ours:.2f} CPU-s, torch.optim {theirs:.2f} CPU-s, ratio {theirs / ours:.2f}")


if __name__ == "__main__":
    main()
