"""What this machine can do at most, measured like everything else: products, memory, disk."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from measure import one_thread, seconds_of

ROUNDS = 5


def matrix_product(dtype: torch.dtype, size: int) -> float:
    """Return operations a second of a square product, 2 n ** 3 operations each."""
    left = torch.randn(size, size).to(dtype)
    right = torch.randn(size, size).to(dtype)
    out = torch.empty(size, size, dtype=dtype)
    torch.mm(left, right, out=out)
    best = min(seconds_of(lambda: torch.mm(left, right, out=out)) for _ in range(ROUNDS))
    return 2 * size**3 / best


def memory_copy(megabytes: int) -> float:
    """Return bytes a second, read and written ones both counted."""
    source = torch.ones(megabytes << 18)
    target = torch.zeros_like(source)
    best = min(seconds_of(lambda: target.copy_(source)) for _ in range(ROUNDS))
    return 2 * source.nbytes / best


def memory_read(megabytes: int) -> float:
    """Return bytes a second of a sum, which only reads."""
    source = torch.ones(megabytes << 18)
    best = min(seconds_of(source.sum) for _ in range(ROUNDS))
    return source.nbytes / best


def disk(megabytes: int) -> tuple[float, float]:
    """Return bytes a second of writing until synced, and of reading what no cache holds.

    A system without `posix_fadvise` reads from its cache.
    """
    block = np.random.default_rng(0).integers(0, 256, 1 << 20, dtype=np.uint8)
    writes, reads = [], []
    with tempfile.TemporaryDirectory(dir=os.environ.get("LTPIPE_BENCH_DIR")) as folder:
        path = Path(folder) / "block"
        for _ in range(2):
            started = time.perf_counter()
            with path.open("wb", buffering=0) as handle:
                for _ in range(megabytes):
                    handle.write(block.data)
                os.fsync(handle.fileno())
            writes.append(time.perf_counter() - started)
            with path.open("rb", buffering=0) as handle:
                if hasattr(os, "posix_fadvise"):
                    os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                buffer = bytearray(1 << 20)
                started = time.perf_counter()
                while handle.readinto(buffer):
                    pass
                reads.append(time.perf_counter() - started)
    volume = float(megabytes << 20)
    return volume / min(writes), volume / min(reads)


def measure(quick: bool) -> dict[str, float]:
    """Return every ceiling by name, in operations or bytes a second."""
    size = 1024 if quick else 2048
    megabytes = 64 if quick else 512
    found = {}
    for threads in ("", ", one thread"):
        for dtype, name in ((torch.float32, "fp32"), (torch.bfloat16, "bf16")):
            if threads:
                with one_thread():
                    found[f"product {name}{threads}"] = matrix_product(dtype, size)
            else:
                found[f"product {name}"] = matrix_product(dtype, size)
    found["memory copy"] = memory_copy(megabytes)
    found["memory read"] = memory_read(megabytes)
    with one_thread():
        found["memory copy, one thread"] = memory_copy(megabytes)
    found["disk write, synced"], found["disk read, cold"] = disk(megabytes)
    return found


def product_name(dtype: torch.dtype, threads: int = 0) -> str:
    """Return the name of the ceiling of products in `dtype`."""
    name = "product bf16" if dtype is torch.bfloat16 else "product fp32"
    return f"{name}, one thread" if threads == 1 else name
