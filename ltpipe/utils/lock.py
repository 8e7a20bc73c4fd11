"""One process at a time that plans, makes or removes artifacts in a results folder."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from ltpipe.utils.errors import InputError

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


def _take(results: Path) -> FileLock:
    results.mkdir(parents=True, exist_ok=True)
    path = results.resolve() / ".lock"
    owner = path.with_name(".owner")
    lock = FileLock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        try:
            who = owner.read_text(encoding="utf-8").strip()
        except OSError:
            who = "another process"
        raise InputError(
            f"{results}: a run is at work there already ({who}); wait for it, or end it"
        ) from None
    owner.write_text(
        f"process {os.getpid()} on {socket.gethostname()}, in {Path.cwd()}\n", encoding="utf-8"
    )
    return lock
