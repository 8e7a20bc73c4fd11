"""Decode the images of a data set once, by several processes, into one file.

Each image is written where it will lie, so that memory holds one image a process, and an
interrupted job goes on with the images that are not there yet.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    Executor,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
    wait,
)
from dataclasses import dataclass
from importlib import metadata
from itertools import islice
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from ltpipe.artifacts.job import Job
from ltpipe.config.base import canonical_json
from ltpipe.data.images import FileImages, stored_images
from ltpipe.data.opening import dataset_settings, split_part
from ltpipe.data.packed import FILE, SPLITS, create
from ltpipe.data.subset import read_subset
from ltpipe.utils import outside
from ltpipe.utils.errors import InputError
from ltpipe.utils.io import write_text_atomic
from ltpipe.utils.progress import say, track

# Images a task: enough that handing one out costs nothing, few enough to lose at an interruption.
_TASK = 64
# Seconds of work that a failure of the machine may lose.
_SYNC = 10.0
# Files of so many bytes together are decoded before other processes have started.
_FEW_BYTES = 16e6


@dataclass(frozen=True)
class Worker:
    """What every process knows: the images, and the file that they go to."""

    images: FileImages
    path: Path
    offset: int
    starts: np.ndarray

    def sizes(self, rows: range) -> list[tuple[int, int]]:
        """Return height and width of some images as they are stored."""
        return [self.images.whole_size(row) for row in rows]

    def pack(self, rows: range) -> int:
        """Decode some images and write each at its place; return how many."""
        descriptor = os.open(self.path, os.O_WRONLY)
        try:
            for row in rows:
                image = self.images.whole(row)
                if image.nbytes != self.starts[row + 1] - self.starts[row]:
                    raise InputError(f"image {self.images.paths[row]} changed while it was read")
                _write(descriptor, image, self.offset + int(self.starts[row]))
        finally:
            os.close(descriptor)
        return len(rows)


def run(job: Job) -> dict[str, Any]:
    """Write images.h5: all images of the subset in `job.inputs["data"]`, split after split.

    `job.spec` has `dataset`, whose `input` says how images are kept. While the job runs, its
    resume/ folder holds what is packed so far.

    Raises:
        InputError: an image is missing or damaged.
    """
    settings = dataset_settings(job.spec["dataset"])
    subset = read_subset(job.file("data", "subset.h5"))
    source = settings.read(job.root)
    paths: list[Path] = []
    counts: dict[str, int] = {}
    for split in SPLITS:
        index = getattr(subset, f"{split}_index")
        counts[split] = len(index)
        if len(index):
            found = split_part(source, subset, split, settings.source).images
            if not isinstance(found, FileImages):
                raise InputError(f"data source {settings.source!r} has no image files to pack")
            paths += [found.paths[place] for place in index]
    images = stored_images(paths, settings.input)
    started = time.perf_counter()
    processes = max(1, torch.get_num_threads())
    identity = canonical_json({"spec": job.spec, "draw": subset.digest})
    packed = pack(images, counts, job.resume, identity, processes)
    seconds = time.perf_counter() - started
    final = job.output / FILE
    (job.resume / FILE).rename(final)
    shutil.rmtree(job.resume)
    size = final.stat().st_size
    say(
        f"packed {packed} images in {seconds:.1f} s ({packed / max(seconds, 1e-9):.0f} images/s by "
        f"{processes} processes), {size / 1e9:.2f} GB"
    )
    return {
        "decoder": f"Pillow {metadata.version('Pillow')}",
        "images_per_second": round(packed / max(seconds, 1e-9), 1),
    }


def pack(
    images: FileImages, counts: Mapping[str, int], folder: Path, identity: str, processes: int
) -> int:
    """Pack `images` into `folder`/images.h5, going on from what is there; return how many were.

    Args:
        counts: images of each split, those of `images` one after another.
        identity: what the folder's contents have to be of, to be gone on from.
    """
    path, mark, journal = folder / FILE, folder / "identity.json", folder / "packed.txt"
    tasks = [range(at, min(at + _TASK, len(images))) for at in range(0, len(images), _TASK)]
    if not (mark.is_file() and mark.read_text(encoding="utf-8") == identity):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        measurer = Worker(images, path, 0, np.empty(0, np.int64))
        with _pool(measurer, processes) as pool:
            found = list(track(pool.map(_sizes, tasks), "image sizes", len(tasks)))
        sizes = np.array([size for some in found for size in some], np.int64).reshape(-1, 2)
        create(path, sizes, images.shape[2], dict(counts))
        journal.touch()
        write_text_atomic(mark, identity)
    with h5py.File(path, "r") as file:
        worker = Worker(images, path, file["pixels"].id.get_offset(), file["starts"][:])
    done = {int(line) for line in journal.read_text(encoding="utf-8").split()}
    if done:
        say(f"going on with {len(tasks) - len(done)} of {len(tasks)} parts to pack")
    left = [number for number in range(len(tasks)) if number not in done]
    packed = 0
    with _pool(worker, processes) as pool, path.open("rb") as handle, journal.open("a") as lines:
        unsynced: list[int] = []
        synced = time.monotonic()
        finished = _in_any_order(pool, left, tasks, processes)
        for number in track(finished, "packing images", len(tasks), len(done)):
            packed += len(tasks[number])
            unsynced.append(number)
            if time.monotonic() - synced > _SYNC:
                _record(handle.fileno(), lines, unsynced)
                synced = time.monotonic()
        _record(handle.fileno(), lines, unsynced)
    return packed


def _in_any_order(
    pool: Executor, numbers: Sequence[int], tasks: Sequence[range], processes: int
) -> Iterator[int]:
    """Yield the numbers of tasks as they are done, with few of them waiting in the pool."""
    left = iter(numbers)
    running = {pool.submit(_pack, tasks[n]): n for n in islice(left, 2 * processes)}
    while running:
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            future.result()
            yield running.pop(future)
            if (number := next(left, None)) is not None:
                running[pool.submit(_pack, tasks[number])] = number


def _record(descriptor: int, lines: Any, numbers: list[int]) -> None:
    """Note parts as done once the disk has them."""
    os.fsync(descriptor)
    lines.writelines(f"{number}\n" for number in numbers)
    lines.flush()
    numbers.clear()


def _write(descriptor: int, image: np.ndarray, offset: int) -> None:
    view = np.ascontiguousarray(image).data.cast("B")
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written


# ---- the processes -----------------------------------------------------------------------------

_worker: Worker


def _pool(worker: Worker, processes: int) -> Executor:
    if _bytes_of(worker.images.paths) < _FEW_BYTES:
        return ThreadPoolExecutor(1, initializer=_take, initargs=(worker,))
    # Not forked: libraries of this process have threads of their own.
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(processes, context, _begin, (worker, *outside.planned()))


def _bytes_of(paths: Sequence[Path]) -> int:
    """Return the size of the files that are there; a missing one is named when it is decoded."""
    return sum(path.stat().st_size for path in paths if path.is_file())


def _take(worker: Worker) -> None:
    global _worker
    _worker = worker


def _begin(worker: Worker, expected: Mapping[str, str], strict: bool) -> None:
    _take(worker)
    outside.hold(expected, strict=strict)


def _sizes(rows: range) -> list[tuple[int, int]]:
    return _worker.sizes(rows)


def _pack(rows: range) -> int:
    return _worker.pack(rows)
