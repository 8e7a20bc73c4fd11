"""A job ends with its run, whichever process above it is killed; one without a run goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

JOB = "import time; from ltpipe.runtime.parents import end_with_run; end_with_run(); "
JOB += "print('at work', flush=True); time.sleep(60)"
MAIN = """
import os, subprocess, sys
if sys.argv[1] == "run":
    os.environ["LTPIPE_RUN"] = str(os.getpid())
subprocess.run(["bash", "-c", 'echo $$; "$0" -c "$1" & wait $!; true', sys.executable, sys.argv[2]])
"""


@contextmanager
def run_of(kind: str) -> Iterator[tuple[subprocess.Popen[str], int, int]]:
    """Start a run that starts a shell that starts a job; yield run, shell and job."""
    environment = {name: value for name, value in os.environ.items() if name != "LTPIPE_RUN"}
    command = [sys.executable, "-c", MAIN, kind, JOB]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True
    ) as run:
        assert run.stdout is not None
        shell = int(run.stdout.readline())
        assert run.stdout.readline() == "at work\n"
        (job,) = children(shell)
        try:
            yield run, shell, job
        finally:
            os.killpg(run.pid, signal.SIGKILL)


def children(process: int) -> list[int]:
    return [int(n) for n in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def is_alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("killed", ["run", "shell"])
def test_a_job_ends_with_what_is_above_it(killed):
    with run_of("run") as (run, shell, job):
        os.kill(run.pid if killed == "run" else shell, signal.SIGKILL)
        deadline = time.monotonic() + 5
        while is_alive(job) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not is_alive(job)


def test_a_job_that_a_person_started_goes_on():
    with run_of("by hand") as (run, shell, job):
        os.kill(run.pid, signal.SIGKILL)
        os.kill(shell, signal.SIGKILL)
        time.sleep(1)
        assert is_alive(job)


def test_an_orphan_from_the_start_does_not_begin():
    """Its shell was killed while Python started."""
    command = f'LTPIPE_RUN=$$ "{sys.executable}" -c "import time; time.sleep(0.5); {JOB}" & echo $!'
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=30)
    assert done.stdout.split() == [done.stdout.split()[0]], "it began"
