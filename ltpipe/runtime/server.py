"""Short jobs forked from one process that has imported the libraries already.

A job of a tenth of a second should not wait seconds for imports. With `preload: true` the main
process of a local Snakemake run starts this server (start_server in the module environment). Each
job of one thread that finds its socket in LTPIPE_SERVER hands over its arguments, folder,
environment and standard files, and a fork of the server runs it. The server imports ltpipe's own
modules too, and a
fork drops them where a file of the package has changed since, so a job always runs the code that
lies there when it starts.

A job without a server runs in its own process and does the same.
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
import sys
import time

from ltpipe.plan.stages import COMMANDS, STAGES

VARIABLE = "LTPIPE_SERVER"
MODULES = (
    "PIL.Image",
    "filelock",
    "h5py",
    "importlib.resources.readers",
    "numpy",
    "pandas",
    "pandas.io.formats.csvs",
    "pydantic.fields",
    "pydantic.main",
    "pydantic.type_adapter",
    "pydantic.types",
    "safetensors.torch",
    "sklearn.datasets",
    "sklearn.metrics",
    "torch",
    "tqdm",
    "yaml",
)
FORWARDED = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM)

_PACKAGE = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))  # noqa: PTH120
_LENGTH = struct.Struct("!I")
_NUMBER = struct.Struct("!i")
_POLL_SECONDS = 1.0
_REQUEST_SECONDS = 10.0
_GRACE_SECONDS = 3.0


def hand_over(arguments: list[str]) -> int | None:
    """Let the server run a job and return its exit status.

    Returns None, and has done nothing, where the job must run in this process: there is no server,
    it is that of another Python, or the job has more than the one thread that a server has.
    Signals go on to the job; a job that a signal ended ends this process in the same way.
    """
    path = os.environ.get(VARIABLE)
    if not path or not arguments or arguments[0] not in COMMANDS:
        return None
    if os.environ.get("OMP_NUM_THREADS") != "1":
        return None
    request = {
        "python": _python(),
        "path": sys.path,
        "package": _PACKAGE,
        "arguments": arguments,
        "folder": os.getcwd(),  # noqa: PTH109 - pathlib takes as long as the rest
        "environment": dict(os.environ),
    }
    text = json.dumps(request).encode()
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(path)
            socket.send_fds(connection, [_LENGTH.pack(len(text))], [0, 1, 2])
            connection.sendall(text)
            job = _receive_number(connection)
        except OSError:
            return None
        if job is None:
            return None
        status = _follow(connection)
    if status is None:
        with contextlib.suppress(OSError):
            os.killpg(job, signal.SIGTERM)
        print("ltpipe: error: the server ended before the job did; run again", file=sys.stderr)
        return 1
    if status < 0:
        with contextlib.suppress(OSError):  # SIGKILL has no handler to reset.
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    return status


def _python() -> list[str | None]:
    """Return what decides which libraries are imported."""
    # One environment's interpreter goes by several names: python, python3.
    return [sys.prefix, sys.version, os.environ.get("PYTHONPATH")]


def _follow(connection: socket.socket) -> int | None:
    """Wait for a job's status, negative for a signal; None where the server has gone."""

    def forward(number: int, frame: object) -> None:
        with contextlib.suppress(OSError):
            connection.sendall(bytes([number]))

    for number in FORWARDED:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, forward)
    try:
        return _receive_number(connection)
    except OSError:
        return None


def _receive_number(connection: socket.socket) -> int | None:
    data = _receive(connection, _NUMBER.size)
    return int(_NUMBER.unpack(data)[0]) if len(data) == _NUMBER.size else None


def _receive(connection: socket.socket, length: int) -> bytes:
    """Return `length` bytes, or fewer where the other side has gone."""
    data = b""
    while len(data) < length and (part := connection.recv(length - len(data))):
        data += part
    return data


class _Job:
    """A running fork, and the connection to the process that asked for it."""

    def __init__(self, pid: int, connection: socket.socket) -> None:
        self.pid = pid
        self.connection = connection
        self.kill_at: float | None = None

    def send(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def abandon(self) -> None:
        """Ask a job that nobody waits for to end."""
        self.send(signal.SIGTERM)
        self.kill_at = time.monotonic() + _GRACE_SECONDS


class Server:
    """Runs jobs that arrive at `listener` while process `parent` lives.

    `known` are the package's files as they were before they were imported. The server leaves after
    `idle_seconds` without a job. When the parent has gone it takes no more jobs,
    and leaves with the last one.
    """

    def __init__(
        self,
        listener: socket.socket,
        parent: int,
        idle_seconds: float,
        known: dict[str, tuple[int, int]],
    ) -> None:
        self.listener = listener
        self.known = known
        self.parent = parent
        self.idle_seconds = idle_seconds
        self.jobs: list[_Job] = []
        self.selector = selectors.DefaultSelector()
        self.selector.register(listener, selectors.EVENT_READ)
        # A job that ends interrupts the wait for requests through this pair.
        self.woken, self.waking = socket.socketpair()
        for end in (self.woken, self.waking):
            end.setblocking(False)
        self.selector.register(self.woken, selectors.EVENT_READ)
        signal.set_wakeup_fd(self.waking.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)

    def serve(self) -> None:
        """Run jobs until it is time to leave."""
        idle_since = time.monotonic()
        accepting = True
        while accepting or self.jobs:
            for key, _ in self.selector.select(_POLL_SECONDS):
                if key.fileobj is self.listener:
                    self._accept()
                elif isinstance(key.data, _Job):
                    self._hear(key.data)
                else:
                    self.woken.recv(4096)
            self._reap()
            now = time.monotonic()
            if self.jobs:
                idle_since = now
            is_idle = now - idle_since >= self.idle_seconds
            if accepting and (is_idle or os.getppid() != self.parent):
                accepting = False
                self.selector.unregister(self.listener)
                self.listener.close()

    def _accept(self) -> None:
        connection, _ = self.listener.accept()
        files: list[int] = []
        try:
            connection.settimeout(_REQUEST_SECONDS)
            head, files, _, _ = socket.recv_fds(connection, _LENGTH.size, 3)
            head += _receive(connection, _LENGTH.size - len(head))
            request = json.loads(_receive(connection, *_LENGTH.unpack(head)))
            connection.settimeout(None)
            if request["python"] != _python() or len(files) != 3:
                raise ValueError("a request for another Python, or without its files")
            pid = os.fork()
            if pid == 0:
                try:
                    connection.close()
                    self._leave_to_child()
                    _run(request, files, self.known)
                finally:
                    os._exit(1)
        except (OSError, ValueError, KeyError, struct.error):
            # The other side runs its job itself.
            connection.close()
            return
        finally:
            for file in files:
                os.close(file)
        # The fork does the same, whichever comes first, so a signal to the group always arrives.
        with contextlib.suppress(OSError):
            os.setpgid(pid, pid)
        with contextlib.suppress(OSError):
            connection.sendall(_NUMBER.pack(pid))
        job = _Job(pid, connection)
        self.jobs.append(job)
        self.selector.register(connection, selectors.EVENT_READ, job)

    def _leave_to_child(self) -> None:
        """Close in a fork what belongs to the server and to other jobs."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        self.selector.close()
        self.listener.close()
        self.woken.close()
        self.waking.close()
        for job in self.jobs:
            job.connection.close()

    def _hear(self, job: _Job) -> None:
        """Pass a signal on; where the one who asked has gone, end the job."""
        try:
            numbers = job.connection.recv(64)
        except OSError:
            numbers = b""
        for number in numbers:
            if number in FORWARDED:
                job.send(number)
        if not numbers:
            self.selector.unregister(job.connection)
            job.abandon()

    def _reap(self) -> None:
        """Report the jobs that have ended; kill those that were asked to and have not."""
        for job in list(self.jobs):
            pid, status = os.waitpid(job.pid, os.WNOHANG)
            if pid:
                self.jobs.remove(job)
                if job.kill_at is None:
                    self.selector.unregister(job.connection)
                with contextlib.suppress(OSError):
                    job.connection.sendall(_NUMBER.pack(os.waitstatus_to_exitcode(status)))
                job.connection.close()
            elif job.kill_at is not None and time.monotonic() >= job.kill_at:
                job.send(signal.SIGKILL)

    def end_jobs(self) -> None:
        """End every job, for when the server itself is told to end."""
        for job in self.jobs:
            job.abandon()
        while self.jobs:
            time.sleep(0.01)
            self._reap()


def _package_files() -> dict[str, tuple[int, int]]:
    """Return time and size of every source file of this package."""
    files = {}
    for folder, _, names in os.walk(_PACKAGE):
        for name in names:
            if name.endswith(".py"):
                path = os.path.join(folder, name)  # noqa: PTH118
                stat = os.stat(path)  # noqa: PTH116
                files[path] = stat.st_mtime_ns, stat.st_size
    return files


def _import_package() -> None:
    """Import what jobs use of ltpipe, and read what their code identities are made of."""
    registry = importlib.import_module("ltpipe.config.registry")
    code = importlib.import_module("ltpipe.plan.code")
    importlib.import_module("ltpipe.cli.program")
    entries = {
        registry.module_of(kind, name)
        for kind in registry.KINDS
        for name in registry.registered(kind)
    }
    for name in sorted(entries | {stage.module for stage in STAGES.values() if stage.module}):
        importlib.import_module(name)
        code.code_modules([name])


def _run(request: dict, files: list[int], known: dict[str, tuple[int, int]]) -> None:
    """Run a job in this fork as if it had been started where it was asked for; never return."""
    code = 1
    try:
        os.setpgid(0, 0)
        _become(request, files, known)
        code = importlib.import_module("ltpipe.cli.program").main(request["arguments"])
    except SystemExit as error:
        if error.code is None or isinstance(error.code, int):
            code = error.code or 0
        else:
            print(error.code, file=sys.stderr)
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        if isinstance(error, KeyboardInterrupt):
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        # Handlers registered at exit are the server's, not the job's.
        os._exit(code & 0xFF)


def _become(request: dict, files: list[int], known: dict[str, tuple[int, int]]) -> None:
    """Take on the folder, environment, standard files and import path of the one who asked."""
    import tempfile

    for target, file in enumerate(files):
        os.dup2(file, target)
        os.close(file)
    files.clear()
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    # What this job starts in its turn is no request.
    del os.environ[VARIABLE]
    sys.argv = ["ltpipe", *request["arguments"]]
    if request["package"] != _PACKAGE or _package_files() != known:
        for name in [name for name in sys.modules if name.split(".")[0] == "ltpipe"]:
            del sys.modules[name]
        importlib.invalidate_caches()
    sys.path[:] = request["path"]
    # The folder for temporary files is looked up once and kept.
    tempfile.tempdir = None
    sys.stdin = os.fdopen(0, closefd=False)
    sys.stdout = os.fdopen(1, "w", buffering=1 if os.isatty(1) else -1, closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, errors="backslashreplace", closefd=False)


def main() -> None:
    """Serve on a listening socket: its number, its path, the parent's id, the idle seconds."""
    import gc
    from pathlib import Path

    number, path, parent, idle_seconds = sys.argv[1:]
    listener = socket.socket(fileno=int(number))
    listener.set_inheritable(False)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
    try:
        for name in MODULES:
            importlib.import_module(name)
        sys.modules["torch"].set_num_threads(1)
        known = _package_files()
        _import_package()
        # Objects that are there now are left alone by collections in forks, and stay shared.
        gc.collect()
        gc.freeze()
        server = Server(listener, int(parent), float(idle_seconds), known)
        try:
            server.serve()
        finally:
            server.end_jobs()
    finally:
        with contextlib.suppress(OSError):
            Path(path).unlink()
            Path(path).parent.rmdir()


if __name__ == "__main__":
    main()
