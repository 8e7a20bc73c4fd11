"""Short jobs forked from a process that has imported torch already.

A job of a tenth of a second should not wait two seconds for imports. Where an experiment says
`preload: true`, Snakemake's process starts a server; each `ltpipe` job that finds it hands over its
arguments, folder, environment and open files, and is run by a fork of the server. The server
imports no module of ltpipe that a job uses, so a fork reads today's code as any process would.
Where there is no server, a job runs where it was started, and does the same.

The socket lies in a private folder. A job whose caller goes away is ended; the server ends when
its own caller does, or after two idle minutes.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import selectors
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

VARIABLE = "LTPIPE_PRELOADED"
_JOBS = ("draw", "train", "embed", "import", "classify")
_MODULES = (
    "torch",
    "torch.nn.functional",
    "h5py",
    "numpy",
    "pandas",
    "pydantic",
    "safetensors.torch",
    "sklearn.datasets",
    "sklearn.metrics",
    "filelock",
    "tqdm",
    "yaml",
    "PIL.Image",
)
_LENGTH = struct.Struct("!I")
_IDLE_SECONDS = 120.0
_GRACE_SECONDS = 5.0


def start(idle_seconds: float = _IDLE_SECONDS) -> subprocess.Popen[bytes]:
    """Start a server for the jobs that this process is about to start, and return it.

    It takes requests at once and answers them when its imports are done.
    """
    folder = Path(tempfile.mkdtemp(prefix="ltpipe-"))
    path = folder / "jobs"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        path.chmod(0o600)
        listener.listen(128)
        listener.set_inheritable(True)
        command = [sys.executable, "-m", "ltpipe.preload", str(listener.fileno()), str(path)]
        server = subprocess.Popen(
            [*command, str(idle_seconds)],
            pass_fds=[listener.fileno()],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    os.environ[VARIABLE] = str(path)
    return server


def hand_over(arguments: Sequence[str]) -> int | None:
    """Let the server run a job and return its exit status; None where there is no server."""
    path = os.environ.get(VARIABLE)
    if not path or not arguments or arguments[0] not in _JOBS:
        return None
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(path)
            request = json.dumps(
                {
                    "arguments": list(arguments),
                    "folder": str(Path.cwd()),
                    "variables": dict(os.environ),
                }
            ).encode()
            socket.send_fds(connection, [_LENGTH.pack(len(request))], [0, 1, 2])
            connection.sendall(request)
        except OSError:
            return None
        reply = _receive(connection, 1)
    if not reply:
        print("ltpipe: error: the preloaded process ended; run again", file=sys.stderr)
        return 1
    return reply[0]


def _receive(connection: socket.socket, length: int) -> bytes:
    """Return exactly `length` bytes, or fewer where the other side has ended."""
    data = b""
    while len(data) < length and (part := connection.recv(length - len(data))):
        data += part
    return data


@dataclass
class _Running:
    """A job: its caller's connection, its process, and a pipe that ends with it."""

    connection: socket.socket
    pid: int
    ended: int


class _Server:
    def __init__(self, listener: socket.socket, idle_seconds: float) -> None:
        self.listener = listener
        self.idle_seconds = idle_seconds
        self.caller = os.getppid()
        self.selector = selectors.DefaultSelector()
        self.selector.register(listener, selectors.EVENT_READ)
        self.jobs: list[_Running] = []

    def serve(self) -> None:
        """Run jobs until the caller is gone or nobody has asked for long."""
        last = time.monotonic()
        while self.jobs or time.monotonic() - last < self.idle_seconds:
            if os.getppid() != self.caller:
                break
            for key, _ in self.selector.select(timeout=1.0):
                last = time.monotonic()
                if key.fileobj is self.listener:
                    self._accept()
                elif isinstance(key.data, _Running) and key.data in self.jobs:
                    self._finish(key.data)
        for job in list(self.jobs):
            self._finish(job)

    def _accept(self) -> None:
        connection, _ = self.listener.accept()
        connection.settimeout(10.0)
        try:
            head, files, _, _ = socket.recv_fds(connection, _LENGTH.size, 3)
            head += _receive(connection, _LENGTH.size - len(head))
            request = json.loads(_receive(connection, _LENGTH.unpack(head)[0]))
        except (OSError, ValueError, struct.error):
            connection.close()
            return
        connection.settimeout(None)
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            self.selector.close()
            self.listener.close()
            connection.close()
            _work(request, files)
        os.close(writer)
        for file in files:
            os.close(file)
        job = _Running(connection, pid, reader)
        self.jobs.append(job)
        self.selector.register(connection, selectors.EVENT_READ, job)
        self.selector.register(reader, selectors.EVENT_READ, job)

    def _finish(self, job: _Running) -> None:
        """Take leave of a job that has ended, or whose caller has."""
        status = _wait(job.pid)
        with contextlib.suppress(OSError):
            code = os.waitstatus_to_exitcode(status)
            job.connection.sendall(bytes([code if code >= 0 else 128 - code]))
        self.selector.unregister(job.connection)
        self.selector.unregister(job.ended)
        job.connection.close()
        os.close(job.ended)
        self.jobs.remove(job)


def _wait(pid: int) -> int:
    """Return the exit status of a process, which is asked to end if it has not yet."""
    found, status = os.waitpid(pid, os.WNOHANG)
    deadline = time.monotonic() + 0.2
    while not found and time.monotonic() < deadline:
        # Its pipe ends a moment before the process does.
        time.sleep(0.001)
        found, status = os.waitpid(pid, os.WNOHANG)
    for number in (signal.SIGTERM, signal.SIGKILL):
        if found:
            break
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, number)
        deadline = time.monotonic() + _GRACE_SECONDS
        while not found and time.monotonic() < deadline:
            time.sleep(0.01)
            found, status = os.waitpid(pid, os.WNOHANG)
    return status


def _work(request: dict[str, Any], files: list[int]) -> None:
    """Run a job in this fork as if it had been started where it was asked for; never return."""
    code = 1
    try:
        os.setsid()
        for target, file in enumerate(files):
            os.dup2(file, target)
            os.close(file)
        os.chdir(request["folder"])
        os.environ.clear()
        os.environ.update(request["variables"])
        os.environ.pop(VARIABLE, None)
        code = importlib.import_module("ltpipe.cli").main(request["arguments"])
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def main() -> None:
    """Serve on the socket that the caller opened: its number, its path, the idle seconds."""
    listener = socket.socket(fileno=int(sys.argv[1]))
    listener.set_inheritable(False)
    path = Path(sys.argv[2])
    try:
        server = _Server(listener, float(sys.argv[3]))
        for name in _MODULES:
            importlib.import_module(name)
        importlib.import_module("torch").set_num_threads(1)
        server.serve()
    finally:
        with contextlib.suppress(OSError):
            path.unlink()
            path.parent.rmdir()


if __name__ == "__main__":
    main()
