"""Short jobs forked from one process that has imported the libraries already.

A job of a tenth of a second should not wait seconds for imports. With `preload: true` the main
process of a local Snakemake run starts this server. A job of one thread that finds its socket in
LTPIPE_SERVER hands over its arguments, folder, environment and standard files (module client), and
a fork of the server runs it. From then on the fork and the client need the server no more: the fork
reports its status, and is killed when its client has gone.

What a server can't do is declined, and the job runs in its own process: for another Python or
package, or where a file of the package has changed since the server started.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from ltpipe.runtime.client import LENGTH, NUMBER, PACKAGE, VARIABLE, receive, serves
from ltpipe.utils.machine import gpu_count

# The program that runs a job, by name: it is above this module.
PROGRAM = "ltpipe.cli.program"
# What libraries import only when they are used.
LATE = ("importlib.resources.readers", "pandas.io.formats.csvs")
# A process with threads must not fork, so every library gets one.
ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"), "1"
)
_PREFIX = "ltpipe-"
_FRESH = "socket-new"
_POLL_SECONDS = 1.0
# Of Linux's <linux/prctl.h>; elsewhere the server looks for its parent now and then.
_SET_PARENT_DEATH_SIGNAL = 1
_BEGINNING_SECONDS = 60.0

# Time and size of every source file of the package.
Files = dict[str, tuple[int, int]]


def start_server(idle_seconds: float = 120.0) -> subprocess.Popen[bytes] | None:
    """Start the process that short jobs are forked from; None where there are GPUs or no room.

    It takes requests at once and answers them when its imports are done. It leaves when this
    process has gone, or after `idle_seconds` without a job.
    """
    if gpu_count():
        return None
    try:
        if not hasattr(socket, "AF_UNIX"):
            raise OSError("this system has no Unix sockets")
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
        try:
            return _start(folder / "socket", idle_seconds)
        except BaseException:
            _remove(folder)
            raise
    except OSError as error:
        print(
            f"preload: every job imports its libraries itself, since no server starts: {error}; "
            "TMPDIR has to name a folder with a short path and some room",
            file=sys.stderr,
        )
        return None


def _start(path: Path, idle_seconds: float) -> subprocess.Popen[bytes]:
    fresh = path.with_name(_FRESH)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(fresh))
        fresh.chmod(0o600)
        listener.listen(128)
        # A socket of this name that refuses is that of a dead server.
        fresh.rename(path)
        command = [sys.executable, "-P", "-m", "ltpipe.runtime.server"]
        command += [str(listener.fileno()), str(path), str(os.getpid()), str(idle_seconds)]
        process = subprocess.Popen(
            command,
            pass_fds=[listener.fileno()],
            env={**os.environ, **ONE_THREAD, "CUDA_VISIBLE_DEVICES": ""},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    os.environ[VARIABLE] = str(path)
    return process


def sweep(temporary: Path | None = None) -> None:
    """Remove what servers of this user left behind in a folder, TMPDIR unless given."""
    # As mkdtemp names them.
    for folder in (temporary or Path(tempfile.gettempdir())).glob(f"{_PREFIX}{'?' * 8}"):
        with contextlib.suppress(OSError):
            status = folder.lstat()
            is_new = time.time() - status.st_mtime < _BEGINNING_SECONDS
            names = {path.name for path in folder.iterdir()}
            # Others may use such names: nothing else lies in a server's.
            if status.st_uid != os.getuid() or not names <= {"socket", _FRESH}:
                continue
            if "socket" not in names:
                # Of one that was killed before it listened, unless it is about to.
                if not is_new:
                    _remove(folder)
                continue
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(1.0)
                try:
                    connection.connect(str(folder / "socket"))
                except ConnectionRefusedError:
                    _remove(folder)


def _remove(folder: Path) -> None:
    with contextlib.suppress(OSError):
        for name in (_FRESH, "socket"):
            (folder / name).unlink(missing_ok=True)
        folder.rmdir()


def serve(listener: socket.socket, parent: int, idle_seconds: float, known: Files) -> None:
    """Fork a process for each request until `parent` has gone or no job ran for a while.

    `known` are the package's files as they were before they were imported.
    """
    idle_since = time.monotonic()
    while os.getppid() == parent and time.monotonic() - idle_since < idle_seconds:
        asked, _, _ = select.select([listener], [], [], _POLL_SECONDS)
        if asked:
            connection, _ = listener.accept()
            with connection, contextlib.suppress(OSError):
                if os.fork() == 0:
                    listener.close()
                    _answer(connection, known)
        if asked or _has_children():
            idle_since = time.monotonic()


def _has_children() -> bool:
    """Reap the jobs that have ended; return whether any still runs."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
        return True
    return False


def _answer(connection: socket.socket, known: Files) -> None:
    """Run the job that is asked for, in this fork, or decline by a closed connection."""
    try:
        head, files, _, _ = socket.recv_fds(connection, LENGTH.size, 3)
        head += receive(connection, LENGTH.size - len(head))
        request = json.loads(receive(connection, *LENGTH.unpack(head)))
        if request["serves"] != serves() or package_files() != known:
            os._exit(0)
        # Signals to the group reach what the job starts.
        os.setpgid(0, 0)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        _end_with(connection)
        connection.sendall(NUMBER.pack(os.getpid()))
        _become(request, files)
        status = _run(request["arguments"])
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        connection.sendall(NUMBER.pack(status))
    finally:
        # Handlers registered at exit are the server's, not the job's.
        os._exit(1)


def _end_with(connection: socket.socket) -> None:
    """Have this process and what it starts killed when the client has gone."""
    import fcntl

    signal.signal(signal.SIGIO, lambda number, frame: os.killpg(0, signal.SIGKILL))
    fcntl.fcntl(connection, fcntl.F_SETOWN, os.getpid())
    flags = fcntl.fcntl(connection, fcntl.F_GETFL)
    fcntl.fcntl(connection, fcntl.F_SETFL, flags | os.O_ASYNC)


def _become(request: dict[str, Any], files: list[int]) -> None:
    """Take on the folder, environment, standard files and import path of the one who asked."""
    for target, file in enumerate(files):
        os.dup2(file, target)
        os.close(file)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    # What this job starts in its turn is no request.
    del os.environ[VARIABLE]
    sys.argv = ["ltpipe", *request["arguments"]]
    sys.path[:] = request["path"]
    # The folder for temporary files is looked up once and kept.
    tempfile.tempdir = None
    sys.stdin = os.fdopen(0, closefd=False)
    sys.stdout = os.fdopen(1, "w", buffering=1 if os.isatty(1) else -1, closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, errors="backslashreplace", closefd=False)


def _run(arguments: list[str]) -> int:
    """Return the status with which a process of these arguments would end."""
    try:
        return int(importlib.import_module(PROGRAM).main(arguments)) & 0xFF
    except SystemExit as error:
        if error.code is None or isinstance(error.code, int):
            return (error.code or 0) & 0xFF
        print(error.code, file=sys.stderr)
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        if isinstance(error, KeyboardInterrupt):
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
    return 1


def package_files() -> Files:
    """Return time and size of every source file of this package."""
    files = {}
    for folder, _, names in os.walk(PACKAGE):
        for name in names:
            if name.endswith(".py"):
                path = os.path.join(folder, name)  # noqa: PTH118
                stat = os.stat(path)  # noqa: PTH116
                files[path] = stat.st_mtime_ns, stat.st_size
    return files


def preload() -> None:
    """Import what jobs use, and read what their code identities are made of."""
    registry = importlib.import_module("ltpipe.config.registry")
    stages = importlib.import_module("ltpipe.plan.stages").STAGES.values()
    entries = {
        registry.module_of(kind, name)
        for kind in registry.KINDS
        for name in registry.registered(kind)
    }
    entries |= {stage.module for stage in stages if stage.module}
    for name in (*sorted(entries), PROGRAM, *LATE):
        importlib.import_module(name)
    importlib.import_module("ltpipe.plan.code").code_modules(entries)
    importlib.import_module("torch").set_num_threads(1)


def _end_after_parent(parent: int) -> None:
    """Have this process ended as soon as `parent` has gone, though it be importing."""
    import ctypes

    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGTERM)
    if os.getppid() != parent:
        sys.exit(0)


def main() -> None:
    """Serve on a listening socket: its number, its path, the parent's id, the idle seconds."""
    import gc

    number, path, parent, idle_seconds = sys.argv[1:]
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
    try:
        with socket.socket(fileno=int(number)) as listener:
            listener.set_inheritable(False)
            _end_after_parent(int(parent))
            known = package_files()
            preload()
            # Objects that are there now are left alone by collections in forks, and stay shared.
            gc.collect()
            gc.freeze()
            serve(listener, int(parent), float(idle_seconds), known)
    finally:
        _remove(Path(path).parent)


if __name__ == "__main__":
    main()
