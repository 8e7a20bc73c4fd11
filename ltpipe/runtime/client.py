"""Hands a short job over to the job server (module server), which has imported the libraries.

Every `ltpipe` asks here first, so little is imported.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import struct
import sys

VARIABLE = "LTPIPE_SERVER"
FORWARDED = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM)
PACKAGE = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))  # noqa: PTH120

# What goes over the connection: the length of a request, and of a job its process id, its status.
LENGTH = struct.Struct("!I")
NUMBER = struct.Struct("!i")


def hand_over(arguments: list[str]) -> int | None:
    """Let the server run a job and return its exit status.

    Returns None, and has done nothing, where the job must run in this process: there is no server,
    it declines, or the job has more than the one thread that a server has. Signals go on to the
    job, and end this process as they ended the job.
    """
    path = os.environ.get(VARIABLE)
    # Jobs are the commands that are told a spec.
    if not path or "--spec" not in arguments or os.environ.get("OMP_NUM_THREADS") != "1":
        return None
    request = {
        "serves": serves(),
        "path": sys.path,
        "arguments": arguments,
        "folder": os.getcwd(),  # noqa: PTH109 - pathlib takes as long as the rest
        "environment": dict(os.environ),
    }
    text = json.dumps(request).encode()
    # A signal that comes while the job starts waits until it can be passed on.
    held = signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(path)
            socket.send_fds(connection, [LENGTH.pack(len(text))], [0, 1, 2])
            connection.sendall(text)
            job = _receive_number(connection)
            if job is None:
                return None
            passed = _pass_on(job)
            signal.pthread_sigmask(signal.SIG_SETMASK, held)
            return _follow(connection, passed)
    except OSError:
        return None
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)


def serves() -> list[str | None]:
    """Return what decides which libraries and which package are imported."""
    # One environment's interpreter goes by several names: python, python3.
    return [sys.prefix, sys.version, os.environ.get("PYTHONPATH"), PACKAGE]


def _pass_on(job: int) -> list[int]:
    """Pass signals on to the job's process group from now on; return those that were, a list."""
    passed: list[int] = []

    def forward(number: int, frame: object) -> None:
        passed.append(number)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(job, number)

    for number in FORWARDED:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, forward)
    return passed


def _follow(connection: socket.socket, passed: list[int]) -> int:
    """Wait for the job's status; where a signal that was passed on ended it, end by that signal."""
    status = None
    with contextlib.suppress(OSError):
        status = _receive_number(connection)
    if status is not None:
        return status
    if passed:
        signal.signal(passed[-1], signal.SIG_DFL)
        os.kill(os.getpid(), passed[-1])
    print("ltpipe: error: the job was killed, or crashed; run again", file=sys.stderr)
    return 1


def _receive_number(connection: socket.socket) -> int | None:
    data = receive(connection, NUMBER.size)
    return int(NUMBER.unpack(data)[0]) if len(data) == NUMBER.size else None


def receive(connection: socket.socket, length: int) -> bytes:
    """Return `length` bytes, or fewer where the other side has gone."""
    data = b""
    while len(data) < length and (part := connection.recv(length - len(data))):
        data += part
    return data
