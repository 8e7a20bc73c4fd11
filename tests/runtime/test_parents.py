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

from ltpipe.runtime.parents import name_of_run

JOB = "import time; from ltpipe.runtime.parents import end_with_run; end_with_run(); "
JOB += "print('at work', flush=True); time.sleep(60)"
MAIN = """
import os, subprocess, sys
from ltpipe.runtime.parents import name_of_run
if sys.argv[1] == "run":
    os.environ["LTPIPE_RUN"] = name_of_run()
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


def started_by_a_shell(run: str, shell: str) -> list[str]:
    """Start a job of a named run from a shell; return its number, and what it said."""
    script = f"import time; time.sleep(0.5); {JOB.replace('60', '0')}"
    command = f'"{sys.executable}" -c "{script}" & echo $!; {shell}'
    done = subprocess.run(
        ["bash", "-c", command],
        capture_output=True,
        text=True,
        timeout=30,
        env={**os.environ, "LTPIPE_RUN": run},
    )
    return done.stdout.split("\n", 1)


def test_an_orphan_from_the_start_does_not_begin():
    """Its shell was killed while Python started."""
    assert started_by_a_shell(name_of_run(), "true")[1] == ""
    assert started_by_a_shell(name_of_run(), "wait $!")[1] == "at work\n"


def test_a_job_whose_run_ended_before_it_does_not_begin():
    """Only its run was killed while Python started; the shell between waits."""
    script = "from ltpipe.runtime.parents import name_of_run; print(name_of_run())"
    command = [sys.executable, "-c", script]
    ended = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    assert started_by_a_shell(ended, "wait $!")[1] == ""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        listed = process.stdout.readline().strip()
        process.stdout.read()
        assert started_by_a_shell(listed, "wait $!")[1] == "", "its run waits to be asked for"
    number, start, machine = ended.split(".")
    # A run of another machine can't be watched from here.
    assert started_by_a_shell(f"{number}.{start}.elsewhere", "wait $!")[1] == "at work\n"
    # Another process may have got the number since.
    mine = name_of_run().split(".")
    assert started_by_a_shell(f"{mine[0]}.0.{machine}", "wait $!")[1] == ""
