"""Processes of one host that find each other, so that one of them does the work of several.

Each hands in a request, a file in a folder that they share. One at a time is the leader: it takes
requests, its own among them, and answers each when it is done; the others wait. Each process
holds a lock while it lives, so that requests of dead processes are dropped, and what a dead leader
had taken is handed in again.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from filelock import FileLock, Timeout

from ltpipe.utils.io import write_json_atomic

_POLL_SECONDS = 0.1
_SUFFIXES = (".request", ".taken", ".answer", ".lock")

Values = dict[str, Any]


class Entry:
    """The files of one process in the folder; names sort by arrival."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder
        self.name = name
        self.request, self.taken, self.answer, self.lock = (
            folder / f"{name}{suffix}" for suffix in _SUFFIXES
        )

    def is_waiting(self) -> bool:
        """Return whether nobody has taken the request yet."""
        return self.request.is_file() and not self.taken.is_file()

    def is_alive(self) -> bool:
        """Return whether its process is still there."""
        if not self.lock.is_file():
            return False
        try:
            with FileLock(self.lock, timeout=0):
                return False
        except Timeout:
            return True

    def values(self) -> Values:
        """Return what was requested."""
        return json.loads(self.request.read_text(encoding="utf-8"))

    def leader(self) -> Entry | None:
        """Return who has taken the request, or None."""
        try:
            return Entry(self.folder, json.loads(self.taken.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None

    def reply(self, answer: Values) -> None:
        """Answer the request; where its process has gone nobody is told."""
        if self.is_alive():
            write_json_atomic(self.answer, answer)

    def remove(self) -> None:
        """Remove all files of the process."""
        for path in (self.request, self.taken, self.answer, self.lock):
            path.unlink(missing_ok=True)


class Gathering:
    """This process among those that hand in requests to `folder`; a context.

    Args:
        request: what this process wants done, JSON-able.
    """

    def __init__(self, folder: Path, request: Values) -> None:
        self.folder = folder
        self._request = request
        self.own = Entry(folder, f"{time.time_ns():020d}-{os.getpid()}")
        self._alive = FileLock(self.own.lock)
        self._leading = FileLock(folder / "leader.lock")

    def __enter__(self) -> Gathering:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._alive.acquire()
        write_json_atomic(self.own.request, self._request)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._leading.release()
        self.own.remove()
        self._alive.release()

    def wait(self) -> Values | None:
        """Return the answer to this process's request, or None once this process is the leader."""
        while True:
            leader = self.own.leader()
            if leader is None:
                with contextlib.suppress(Timeout):
                    self._leading.acquire(timeout=0)
                    if self.own.is_waiting():
                        return None
                    self._leading.release()
            else:
                gone = not leader.is_alive()
                # Looked for after the leader was seen to be gone: it may have answered last.
                if self.own.answer.is_file():
                    return json.loads(self.own.answer.read_text(encoding="utf-8"))
                if gone:
                    write_json_atomic(self.own.request, self._request)
                    self.own.taken.unlink()
            time.sleep(_POLL_SECONDS)

    def take(
        self, at_once: int, patience: float, accepts: Callable[[Values], bool]
    ) -> list[tuple[Entry, Values]]:
        """Take up to `at_once` requests, this process's first, and let another one lead.

        Args:
            patience: seconds without a newcomer after which no more are waited for.
            accepts: says of a request whether this process can do it.
        """
        ready: dict[str, tuple[Entry, Values]] = {}
        until = time.monotonic() + patience
        while len(ready) < at_once and time.monotonic() < until:
            known = len(ready)
            ready = self._ready(accepts)
            if len(ready) > known:
                until = time.monotonic() + patience
            if len(ready) < at_once:
                time.sleep(_POLL_SECONDS)
        chosen = [(self.own, self._request), *ready.values()][:at_once]
        for entry, _ in chosen:
            write_json_atomic(entry.taken, self.own.name)
            entry.request.unlink(missing_ok=True)
        self._leading.release()
        return chosen

    def _ready(self, accepts: Callable[[Values], bool]) -> dict[str, tuple[Entry, Values]]:
        """Return the others that wait and can be helped; drop those that have gone."""
        found: dict[str, tuple[Entry, Values]] = {}
        # Files other than the lock are there only once the lock is held.
        files = [*self.folder.glob("*.request"), *self.folder.glob("*.taken")]
        for name in sorted({path.stem for path in files} - {self.own.name}):
            entry = Entry(self.folder, name)
            if not entry.is_alive():
                entry.remove()
            elif entry.is_waiting():
                with contextlib.suppress(FileNotFoundError):
                    values = entry.values()
                    if accepts(values):
                        found[entry.name] = entry, values
        return found
