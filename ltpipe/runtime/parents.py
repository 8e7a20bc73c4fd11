"""A job ends when the run that started it has ended, however that came.

Between Snakemake and a job stands a shell. If either is killed, the job would go on as an orphan,
and the next run would start the same job beside it. The run leaves its name in the environment; a
job below its main process watches it and all between, and ends with the first that ends. A job
whose run on this machine has ended already does not begin. A job on another machine, or one that a
person started, has no such process above it, nor has one that a cluster on this machine started.
"""

from __future__ import annotations

import os
import select
import signal
import threading

VARIABLE = "LTPIPE_RUN"


def name_of_run() -> str:
    """Return what names this process among all of all machines: number, start, machine."""
    return f"{os.getpid()}.{_started(os.getpid())}.{_machine()}"


def end_with_run() -> None:
    """Have this process killed as soon as its run, or what stands between, has ended."""
    main, _, rest = os.environ.get(VARIABLE, "").partition(".")
    started, _, machine = rest.partition(".")
    if not main.isdecimal() or machine != _machine() or not hasattr(os, "pidfd_open"):
        return
    try:
        above = _between(int(main))
        handles = [os.pidfd_open(process) for process in above]
        # One that ended before it was watched has left its children to another.
        gone = above != _between(int(main)) or _started(int(main)) != started
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
        found.append(int(_facts(found[-1])[1]))
    return found


def _started(process: int) -> str:
    """Return when a process that runs started, in ticks since the machine did."""
    try:
        facts = _facts(process)
    except OSError:
        return ""
    # One that has ended may stay listed until its parent asks for its status.
    return "" if facts[0] in "ZX" else facts[19]


def _facts(process: int) -> list[str]:
    """Return what the system says of a process, from its state on.

    Raises:
        OSError: there is none.
    """
    # The name before it, in parentheses, may hold anything.
    with open(f"/proc/{process}/stat", "rb") as file:
        return file.read().rpartition(b")")[2].decode().split()


def _machine() -> str:
    """Return what names this start of this machine; nothing where the system does not say."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""


def _watch(handles: list[int]) -> None:
    waiting = select.poll()
    for handle in handles:
        waiting.register(handle, select.POLLIN)
    waiting.poll()
    _end()


def _end() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
