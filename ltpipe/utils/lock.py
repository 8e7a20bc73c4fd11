"""One process at a time in a results folder, and one job at a time in an artifact's."""

from __future__ import annotations

import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from ltpipe.utils.errors import InputError

_PATIENCE_SECONDS = 15.0
# Held until this process ends, however it ends.
_HELD: list[FileLock] = []


def hold(results: Path) -> None:
    """Take the results folder until this process ends, wherever links lead to it.

    Raises:
        InputError: another process has it.
    """
    _HELD.append(_take(results))


@contextmanager
def held(results: Path) -> Iterator[None]:
    """Have the results folder for the block.

    Raises:
        InputError: another process has it.
    """
    lock = _take(results)
    try:
        yield
    finally:
        lock.release()


@contextmanager
def held_by_job(folder: Path) -> Iterator[Path]:
    """Have the folder that a job fills for the block; yield the file that marks it.

    A job whose run was killed ends within seconds, so the next run's waits for it that long.

    Raises:
        InputError: another job has it.
    """
    # A temporary file by its name: no part of the artifact, and gone with other leftovers.
    path = folder / ".job.tmp"
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while (handle := _lock_file(path)) is None:
        if time.monotonic() > deadline:
            raise InputError(
                f"{folder}: another job is at work there ({_owner(path)}); wait for it, or end it"
            )
        time.sleep(0.1)
    try:
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
        yield path
    finally:
        path.unlink(missing_ok=True)
        os.close(handle)


def _lock_file(path: Path) -> int | None:
    """Return a handle of the file, locked; None where another process has it locked."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Who had it may have removed the file meanwhile.
            if path.exists() and os.path.samestat(os.fstat(handle), path.stat()):
                return handle
        except BlockingIOError:
            os.close(handle)
            return None
        os.close(handle)


def _owner(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return "another process"


def _take(results: Path) -> FileLock:
    results.mkdir(parents=True, exist_ok=True)
    path = results.resolve() / ".lock"
    owner = path.with_name(".owner")
    lock = FileLock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise InputError(
            f"{results}: a run is at work there already ({_owner(owner)}); wait for it, or end it"
        ) from None
    owner.write_text(
        f"process {os.getpid()} on {socket.gethostname()}, in {Path.cwd()}\n", encoding="utf-8"
    )
    return lock
