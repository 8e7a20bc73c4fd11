"""What jobs find around them: the program, the data, the device. Imports no torch."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

from ltpipe.runtime import server
from ltpipe.utils.errors import InputError
from ltpipe.utils.machine import gpu_count

_THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)


def prepare_jobs(data_root: str | None, device: str) -> None:
    """Set the environment that Snakemake's jobs inherit.

    They find the `ltpipe` of the Python that runs Snakemake, the experiment's data root, and its
    device unless LTPIPE_DEVICE already names one.
    """
    programs = str(Path(sys.executable).parent)
    os.environ["PATH"] = os.pathsep.join([programs, os.environ.get("PATH", "")])
    if data_root:
        os.environ["LTPIPE_DATA"] = data_root
    os.environ.setdefault("LTPIPE_DEVICE", device)


def start_server(idle_seconds: float = 120.0) -> subprocess.Popen[bytes] | None:
    """Start the process that short jobs are forked from; None where there are GPUs.

    It takes requests at once and answers them when its imports are done. It leaves when this
    process has gone, or after `idle_seconds` without a job.

    Raises:
        InputError: there is no room for its socket in the folder for temporary files.
    """
    if gpu_count():
        return None
    folder = Path(tempfile.mkdtemp(prefix="ltpipe-"))
    path = folder / "socket"
    with socket.socket(socket.AF_UNIX) as listener:
        try:
            listener.bind(str(path))
        except OSError as error:
            folder.rmdir()
            raise InputError(f"preload: {path}: {error}; set TMPDIR to a short path") from None
        path.chmod(0o600)
        listener.listen(128)
        command = [
            sys.executable,
            "-P",
            "-m",
            "ltpipe.runtime.server",
            str(listener.fileno()),
            str(path),
        ]
        # A process with threads must not fork, so every library gets one.
        one_thread = dict.fromkeys(_THREAD_VARIABLES, "1")
        process = subprocess.Popen(
            [*command, str(os.getpid()), str(idle_seconds)],
            pass_fds=[listener.fileno()],
            env={**os.environ, **one_thread, "CUDA_VISIBLE_DEVICES": ""},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    os.environ[server.VARIABLE] = str(path)
    return process
