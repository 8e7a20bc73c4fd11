"""The first ten minutes with a GPU: everything that only one can show, one check after another.

python tests/gpu/first.py [--output REPORT.md] [--device cpu --small]

A check that fails, or raises, or runs out of time is reported and the next one begins. Each runs in
a process of its own, since an error of CUDA ends all that a process can still do.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch

HERE = Path(__file__).resolve()
sys.path.insert(0, str(HERE.parents[1] / "benchmarks"))
sys.path.insert(0, str(HERE.parents[2]))
sys.path.insert(0, str(HERE.parents[1] / "training"))

# Seconds that a check may take.
LIMIT = 240


def tasks(device: torch.device):
    """Yield each system's name and its task on random images of a small network."""
    from test_lean import SYSTEMS, task_of

    for system in SYSTEMS:
        for precision in ("fp32", "bf16"):
            yield f"{system}, {precision}", task_of(system, precision, device)


def machine(options: argparse.Namespace) -> None:
    """Name the device, its driver and the versions."""
    with contextlib.suppress(FileNotFoundError):
        print(subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True).stdout.strip())
    print(f"torch {torch.__version__}, CUDA {torch.version.cuda}")
    if torch.cuda.is_available():
        print(torch.cuda.get_device_name(0), torch.cuda.get_device_capability(0))


def rates(options: argparse.Namespace) -> None:
    """Seconds and peak memory of the goals."""
    command = [sys.executable, str(HERE.parents[1] / "benchmarks/gpu.py"), "--epochs", "5"]
    command += ["--device", options.device, *(["--small"] if options.small else [])]
    subprocess.run(command, check=True)


def same_bytes(options: argparse.Namespace) -> None:
    """One seed twice gives equal weights, in every system."""
    seen: dict[str, list[str]] = {}
    for _ in range(2):
        for name, task in tasks(torch.device(options.device)):
            with task.steps.epoch():
                task.run_epoch(0, 0.05)
            digest = hashlib.sha256()
            for tensor in task.state().values():
                digest.update(tensor.detach().cpu().contiguous().view(-1).numpy().tobytes())
            seen.setdefault(name, []).append(digest.hexdigest()[:12])
    for name, found in seen.items():
        print(f"{name}: {'equal' if len(set(found)) == 1 else 'DIFFERENT'} {' '.join(found)}")
    assert all(len(set(found)) == 1 for found in seen.values())


def no_waits(options: argparse.Namespace) -> None:
    """No step of any system waits for the device: an epoch may, once, for its sums."""
    failed = []
    for name, task in tasks(torch.device(options.device)):
        with task.steps.epoch():
            task.run_epoch(0, 0.05)
            waits = []
            with warnings.catch_warnings(record=True) as shown:
                warnings.simplefilter("always")
                if options.device == "cuda":
                    torch.cuda.set_sync_debug_mode("warn")
                task.run_epoch(1, 0.05)
                if options.device == "cuda":
                    torch.cuda.set_sync_debug_mode("default")
            waits = [f"{w.filename}:{w.lineno}" for w in shown if "synchroniz" in str(w.message)]
        print(f"{name}: {len(waits)} waits in an epoch of {len(task.data.labels) // 16} steps")
        for place in sorted(set(waits)):
            print(f"  {place}")
        if len(waits) >= len(task.data.labels) // 16:
            failed.append(name)
    assert not failed, f"a wait a step: {', '.join(failed)}"


def kernels(options: argparse.Namespace) -> None:
    """Kernels a step of a ResNet-32, and how long the device is idle."""
    from gpu import Scale, images
    from stage1 import settings_of
    from torch.profiler import ProfilerActivity, profile

    from ltpipe.losses.softmax import CrossEntropyLoss
    from ltpipe.models.resnet import resnet32
    from ltpipe.training.engine import SupervisedTask

    device = torch.device(options.device)
    data = images(Scale(device, options.small, 1))
    task = SupervisedTask(resnet32(10), CrossEntropyLoss(), data, settings_of(), 0, device)
    activities = [ProfilerActivity.CPU]
    if options.device == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with task.steps.epoch():
        task.run_epoch(0, 0.05)
        started = time.perf_counter()
        with profile(activities=activities) as found:
            task.run_epoch(1, 0.05)
        seconds = time.perf_counter() - started
    steps = -(-len(data.labels) // 128)
    on_device = [e for e in found.events() if "CUDA" in str(e.device_type)]
    busy = sum(event.self_device_time_total for event in on_device) / 1e6
    print(f"{steps} steps in {seconds:.2f} s under the profiler")
    print(f"{len(on_device) / steps:.0f} kernels a step; the device idle {1 - busy / seconds:.0%}")
    print(found.key_averages().table(sort_by="self_cpu_time_total", row_limit=15))


def orders(options: argparse.Namespace) -> None:
    """What of each system has no kernel with a fixed order of sums."""
    torch.use_deterministic_algorithms(True)
    for name, task in tasks(torch.device(options.device)):
        try:
            with task.steps.epoch():
                task.run_epoch(0, 0.05)
            print(f"{name}: all in order")
        except RuntimeError as error:
            print(f"{name}: {str(error).splitlines()[0]}")


CHECKS: tuple[Callable[[argparse.Namespace], None], ...] = (
    machine,
    rates,
    same_bytes,
    no_waits,
    kernels,
    orders,
)


def main() -> None:
    """Run every check in a process of its own and write what each said."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("gpu_report.md"))
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--small", action="store_true", help="sizes for tests")
    parser.add_argument("--check", choices=[check.__name__ for check in CHECKS])
    options = parser.parse_args()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if options.check:
        next(check for check in CHECKS if check.__name__ == options.check)(options)
        return
    arguments = [sys.executable, str(HERE), "--device", options.device]
    arguments += ["--small"] if options.small else []
    lines = ["# What a GPU showed", ""]
    for check in CHECKS:
        started = time.perf_counter()
        try:
            done = subprocess.run(
                [*arguments, "--check", check.__name__],
                capture_output=True,
                text=True,
                timeout=LIMIT,
            )
            said = done.stdout + ("" if done.returncode == 0 else done.stderr[-3000:])
            verdict = "done" if done.returncode == 0 else "FAILED"
        except subprocess.TimeoutExpired as error:
            said = (error.stdout or b"").decode(errors="replace")
            verdict = f"out of time after {LIMIT} s"
        title = (check.__doc__ or "").strip()
        seconds = time.perf_counter() - started
        lines += [f"## {title}", "", f"{verdict}, {seconds:.0f} s", "", "```text", said.strip()]
        lines += ["```", ""]
        # Whatever ends the machine, what was found so far is there.
        options.output.write_text("\n".join(lines))
        print(f"{check.__name__}: {verdict}, {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
