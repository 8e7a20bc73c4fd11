"""Which device a job runs on, in which precision, and how exactly it computes there."""

from __future__ import annotations

import contextlib
import csv
import functools
import os
import re
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from filelock import FileLock, Timeout

from ltpipe.utils.errors import InputError
from ltpipe.utils.machine import mig_devices

CPU = torch.device("cpu")
VISIBLE = "CUDA_VISIBLE_DEVICES"
Work = Literal["training", "extraction", "products"]
# Rates of both types on each kind of processor, by kind of work.
PRECISIONS = Path(__file__).with_name("precisions.csv")
# How much faster bfloat16 has to be to be worth its rounding.
_PAYS = 1.2
# A GPU that a job has to itself is held by all of its slots.
_SLOTS = 16
# Seconds between looks at GPUs that other jobs hold.
_PAUSE = 1.0
_NOT_DETERMINISTIC = re.compile(r"(\S+) does not have a deterministic implementation")


@contextlib.contextmanager
def lease(wanted: str, slots: int = 1) -> Iterator[torch.device]:
    """Yield the device for `wanted` (auto, cpu, cuda); of several GPUs one that no job holds.

    Snakemake counts GPUs but never says which one a job may use, so jobs on one host agree by
    lock files. A lock is freed by the system when its process ends, however it ends. When every
    GPU is held, the job waits for the first. One of several processes that torchrun started takes
    the GPU of its number on the host: who started them leased them all (`lease_several`), or has
    the host to itself.

    Args:
        slots: how many jobs may share one GPU, each with an equal part of its memory.

    Raises:
        InputError: cuda is asked for and there is none, `wanted` is unknown, or more processes
            were started than there are GPUs.
    """
    if not 1 <= slots <= _SLOTS:
        raise InputError(f"--gpu-slots {slots}: a GPU is shared by 1 to {_SLOTS} jobs")
    local_rank = os.environ.get("LOCAL_RANK")
    if local_rank is None and _may_take_gpu(wanted) and (instances := mig_devices()):
        with _lock(instances, 1, slots) as chosen:
            # CUDA shows a process one such instance, the first that is named.
            os.environ[VISIBLE] = chosen[0]
            with _exact(torch.device("cuda", 0), slots) as device:
                yield device
        return
    if not _takes_gpu(wanted):
        yield CPU
        return
    if local_rank is not None:
        _check_number(int(local_rank) + 1)
        with _exact(torch.device("cuda", int(local_rank))) as device:
            yield device
        return
    names = _uuids()
    with _lock(names, 1, slots) as chosen:
        with _exact(torch.device("cuda", names.index(chosen[0])), slots) as device:
            yield device


@contextlib.contextmanager
def lease_several(wanted: str, count: int) -> Iterator[Mapping[str, str]]:
    """Hold a GPU for each of `count` processes; yield the environment that shows them these.

    All are taken at once or none, so that two such jobs never wait for each other's. Without GPUs
    the processes share the CPU.

    Raises:
        InputError: there are fewer GPUs than processes, or they are instances of divided ones.
    """
    if _may_take_gpu(wanted) and mig_devices():
        raise InputError(
            f"{count} processes can't train together on MIG instances, which don't exchange "
            "gradients; train with one process, or with --device cpu"
        )
    if not _takes_gpu(wanted):
        yield {}
        return
    _check_number(count)
    with _lock(_uuids(), count, 1) as chosen:
        yield {VISIBLE: ",".join(chosen)}


def named_device(wanted: str) -> torch.device:
    """Return the device for auto, cpu, cuda or cuda:N, whoever else uses it.

    Raises:
        InputError: there is no such device.
    """
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(wanted)
    except RuntimeError:
        raise InputError(f"device must be auto, cpu or cuda, not {wanted!r}") from None
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"device must be auto, cpu or cuda, not {wanted!r}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"device: {wanted} was asked for, but torch sees no such CUDA device")
    return device


def _may_take_gpu(wanted: str) -> bool:
    if wanted not in ("auto", "cpu", "cuda"):
        raise InputError(f"device must be auto, cpu or cuda, not {wanted!r}")
    return wanted != "cpu"


def _takes_gpu(wanted: str) -> bool:
    if not _may_take_gpu(wanted):
        return False
    if torch.cuda.is_available():
        return True
    if wanted == "cuda":
        raise InputError("device: cuda was asked for, but torch sees no CUDA device")
    return False


def _check_number(processes: int) -> None:
    there = torch.cuda.device_count()
    if processes > there:
        raise InputError(
            f"{processes} processes need a GPU each, and torch sees {there} on this host: ask for "
            f"{there} (--processes), or train on the CPU (--device cpu)"
        )


def _uuids() -> list[str]:
    """Return the name of each GPU by its number here."""
    count = torch.cuda.device_count()
    return [f"GPU-{torch.cuda.get_device_properties(index).uuid}" for index in range(count)]


def _lock_folder() -> Path:
    folder = Path(tempfile.gettempdir()) / f"ltpipe-gpus-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


@contextlib.contextmanager
def _lock(names: Sequence[str], count: int, slots: int) -> Iterator[list[str]]:
    """Hold `count` of the named GPUs, or one slot of one; wait until they are free at once."""
    while True:
        with contextlib.ExitStack() as stack:
            chosen = _free(stack, names, count, slots)
            if len(chosen) == count:
                yield chosen
                return
        time.sleep(_PAUSE)


def _free(stack: contextlib.ExitStack, names: Sequence[str], count: int, slots: int) -> list[str]:
    """Lock up to `count` of the GPUs, each until `stack` closes; return their names."""
    # Slots are numbered across GPUs first, so that jobs spread over them.
    wanted = [(name, range(_SLOTS)) for name in names]
    if slots > 1:
        wanted = [(name, range(slot, slot + 1)) for slot in range(slots) for name in names]
    chosen: list[str] = []
    for name, numbers in wanted:
        if len(chosen) == count:
            break
        with contextlib.ExitStack() as held, contextlib.suppress(Timeout):
            for number in numbers:
                path = _lock_folder() / f"{name}.{number}.lock"
                held.enter_context(FileLock(path).acquire(timeout=0))
            stack.enter_context(held.pop_all())
            chosen.append(name)
    return chosen


@contextlib.contextmanager
def _exact(device: torch.device, slots: int = 1) -> Iterator[torch.device]:
    """Make `device` the current one, and ask it for equal bytes from equal seeds.

    No kernel is chosen by timing, float32 is float32 (no TF32), and where a kernel that adds in a
    fixed order exists it is taken; `undetermined` names those that have none.
    """
    # cuBLAS reads it when its first handle is made.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.cuda.set_device(device)
    if slots > 1:
        torch.cuda.set_per_process_memory_fraction(1 / slots, device)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Uninitialised memory is never read here, so it need not be filled.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        yield device
    finally:
        torch.use_deterministic_algorithms(False)


@contextlib.contextmanager
def undetermined() -> Iterator[list[str]]:
    """Yield a list that fills with the operations that ran without a fixed order of their sums.

    Torch warns of each; its warnings of other things are shown as ever.
    """
    names: list[str] = []
    with warnings.catch_warnings():
        warnings.filterwarnings("always", _NOT_DETERMINISTIC.pattern)
        shown = warnings.showwarning

        def keep(message: Warning | str, *details: Any, **more: Any) -> None:
            found = _NOT_DETERMINISTIC.match(str(message))
            if found is None:
                shown(message, *details, **more)
            elif found[1] not in names:
                names.append(found[1])

        warnings.showwarning = keep
        yield names


def describe(device: torch.device) -> str:
    """Return the device in words, such as `cpu (1 thread)` or the GPU's name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"cpu ({threads} thread{'s' if threads > 1 else ''})"


def numerics(device: torch.device, without_order: Sequence[str]) -> dict[str, Any]:
    """Return what a manifest says of how the device computes.

    Args:
        without_order: as `undetermined` gives it.
    """
    if device.type != "cuda":
        return {}
    native = torch.cuda.is_bf16_supported(including_emulation=False)
    return {
        "tf32": torch.backends.cuda.matmul.allow_tf32 or torch.backends.cudnn.allow_tf32,
        "bfloat16": "native" if native else "emulated",
        "not_deterministic": sorted(without_order),
    }


def precision(wanted: str, device: torch.device, work: Work) -> torch.dtype:
    """Return bfloat16 or float32 for `wanted` (auto, fp32, bf16).

    `auto` takes bfloat16 on GPUs that have it, and on processors where it was measured to be at
    least `_PAYS` times as fast for this kind of work (precisions.csv; tests/benchmarks/precision.py
    measures it anew); where nothing was measured, float32.
    """
    if wanted == "fp32":
        return torch.float32
    if wanted == "bf16":
        return torch.bfloat16
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if native else torch.float32
    return torch.bfloat16 if _gains().get((units(), work), 0.0) >= _PAYS else torch.float32


def units() -> str:
    """Return what this processor has for products of bfloat16: amx, avx512_bf16 or none."""
    try:
        flags = set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    except OSError:
        return "none"
    known = {"amx_bf16": "amx", "avx512_bf16": "avx512_bf16"}
    return next((name for flag, name in known.items() if flag in flags), "none")


@functools.cache
def _gains() -> dict[tuple[str, str], float]:
    """Return how many times faster bfloat16 was than float32, by units and kind of work."""
    with PRECISIONS.open(encoding="utf-8", newline="") as file:
        return {
            (row["units"], row["work"]): float(row["bf16"]) / float(row["fp32"])
            for row in csv.DictReader(file)
        }
