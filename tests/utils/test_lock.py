"""One process at a time has a results folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ltpipe.utils import lock
from ltpipe.utils.errors import InputError
from ltpipe.utils.lock import held, held_by_job

_HOLD = """
import sys
from pathlib import Path
from ltpipe.utils.lock import hold
hold(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


def test_a_second_one_is_told_who_has_it(tmp_path):
    with held(tmp_path / "results"):
        with pytest.raises(InputError, match=f"process {os.getpid()} on .*{Path.cwd()}"):
            with held(tmp_path / "results"):
                pass
    with held(tmp_path / "results"):
        pass


def test_a_link_to_the_folder_is_the_folder(tmp_path):
    (tmp_path / "results").mkdir()
    (tmp_path / "linked").symlink_to("results")
    with held(tmp_path / "linked"), pytest.raises(InputError, match="a run is at work"):
        with held(tmp_path / "results"):
            pass


def test_a_process_that_was_killed_has_it_no_more(tmp_path):
    command = [sys.executable, "-c", _HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"held\n"
        with pytest.raises(InputError, match=f"process {process.pid} "), held(tmp_path):
            pass
        process.kill()
    with held(tmp_path):
        pass


def test_two_jobs_are_never_in_one_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "_PATIENCE_SECONDS", 0.3)
    with held_by_job(tmp_path):
        with pytest.raises(InputError, match=f"another job is at work .*process {os.getpid()} on"):
            with held_by_job(tmp_path):
                pass
    assert list(tmp_path.iterdir()) == []
    (tmp_path / ".job.tmp").write_text("one that was killed")
    with held_by_job(tmp_path):
        pass
