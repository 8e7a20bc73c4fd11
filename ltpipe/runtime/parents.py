"""A job ends when the run that started it has ended, however that came.

Between Snakemake and a job stands a shell. If either is killed, the job would go on as an orphan,
and the next run would start the same job beside it. The run leaves the number of its main process
in the environment; a job below that process watches it and all between, and ends with the first
that ends. A job on another machine, or one that a person started, has no such process above it.
"""

from __future__ import annotations

import os
import select
import signal
import threading

VARIABLE = "LTPIPE_RUN"


def end_with_run() -> None:
    """Have this process killed as soon as its run, or what stands between, has ended."""
    main = os.environ.get(VARIABLE, "")
    if not main.isdecimal() or not hasattr(os, "pidfd_open"):
        return
    try:
        above = _between(int(main))
        handles = [os.pidfd_open(process) for process in above]
        # One that ended before it was watched has left its children to another.
        gone = above != _between(int(main))
    except OSError:
        gone = True
    if gone or os.getppid() == 1:
        _end()
    if above:
        # Signals are for the main thread, which passes some of them on.
        held = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        threading.Thread(target=_watch, args=(handles,), daemon=True).start()
        signal.pthread_sigmask(signal.SIG_SETMASK, held)


def _between(main: int) -> list[int]:
    """Return the processes above this one up to `main`; none where that is not above it."""
    found = [os.getppid()]
    while found[-1] != main:
        if found[-1] <= 1:
            return []
        with open(f"/proc/{found[-1]}/stat", "rb") as file:
            # The name before it, in parentheses, may hold anything.
            found.append(int(file.read().rpartition(b")")[2].split()[1]))
    return found


def _watch(handles: list[int]) -> None:
    waiting = select.poll()
    for handle in handles:
        waiting.register(handle, select.POLLIN)
    waiting.poll()
    _end()


def _end() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
