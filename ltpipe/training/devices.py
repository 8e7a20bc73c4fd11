"""Which device a job runs on, and in which precision."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from ltpipe.utils.errors import InputError

CPU = torch.device("cpu")


@contextlib.contextmanager
def lease(wanted: str) -> Iterator[torch.device]:
    """Yield the device for `wanted` (auto, cpu, cuda); of several GPUs one that no job holds.

    Snakemake counts GPUs but never says which one a job may use, so jobs on one host agree by
    lock files. A lock is freed by the system when its process ends, however it ends. When every
    GPU is held, the job waits for the first.

    Raises:
        InputError: cuda is asked for and there is none, or `wanted` is unknown.
    """
    if wanted not in ("auto", "cpu", "cuda"):
        raise InputError(f"device must be auto, cpu or cuda, not {wanted!r}")
    if wanted == "cuda" and not torch.cuda.is_available():
        raise InputError("device: cuda was asked for, but torch sees no CUDA device")
    if wanted == "cpu" or not torch.cuda.is_available():
        yield CPU
        return
    with _lock_one(torch.cuda.device_count()) as index:
        device = torch.device("cuda", index)
        torch.cuda.set_device(device)
        # Same seed, same bytes: no kernel is chosen by timing.
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.deterministic = True
        yield device


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


def _lock_folder() -> Path:
    folder = Path(tempfile.gettempdir()) / f"ltpipe-gpus-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def _lock_name(index: int) -> str:
    return f"gpu-{torch.cuda.get_device_properties(index).uuid}.lock"


@contextlib.contextmanager
def _lock_one(count: int) -> Iterator[int]:
    locks = [FileLock(_lock_folder() / _lock_name(index)) for index in range(count)]
    while True:
        for index, lock in enumerate(locks):
            with contextlib.suppress(Timeout):
                lock.acquire(timeout=0 if count > 1 else -1)
                try:
                    yield index
                finally:
                    lock.release()
                return
        with contextlib.suppress(Timeout):
            locks[0].acquire(timeout=1)
            locks[0].release()


def describe(device: torch.device) -> str:
    """Return the device in words, such as `cpu (1 thread)` or the GPU's name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"cpu ({threads} thread{'s' if threads > 1 else ''})"


def precision(wanted: str, device: torch.device) -> torch.dtype:
    """Return bfloat16 or float32 for `wanted` (auto, fp32, bf16).

    `auto` takes bfloat16 where matrix units make it pay: GPUs that have it, and CPUs with AMX.
    """
    if wanted == "fp32":
        return torch.float32
    if wanted == "bf16":
        return torch.bfloat16
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    return torch.bfloat16 if _has_amx() else torch.float32


def inference_precision(wanted: str, device: torch.device) -> torch.dtype:
    """Return `precision` for forward passes alone.

    There `auto` takes bfloat16 also on CPUs that multiply it without matrix units (AVX-512 BF16):
    it is more than twice as fast on them, where a training step gains nothing.
    """
    if wanted == "auto" and device.type == "cpu" and _has_instructions("avx512_bf16"):
        return torch.bfloat16
    return precision(wanted, device)


def _has_amx() -> bool:
    return _has_instructions("amx_bf16")


def _has_instructions(name: str) -> bool:
    try:
        return name in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
