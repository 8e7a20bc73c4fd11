"""Jobs forked from a preloaded process: the same results, and no process left behind."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from ltpipe import preload
from ltpipe.config.base import canonical_json
from tests.artifacts import CE, DIGITS, draw

DRAW = {"kind": "data", "dataset": {k: v for k, v in DIGITS.items() if k != "input"}}


@pytest.fixture(scope="module")
def server():
    """A running server and the environment in which jobs find it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(preload.VARIABLE, raising=False)
        process = preload.start(60.0)
        path = os.environ[preload.VARIABLE]
        patch.setenv(preload.VARIABLE, path)
        yield process, path
    process.kill()
    process.wait()
    os.environ.pop(preload.VARIABLE, None)


def environment(path):
    return {**os.environ, preload.VARIABLE: path, "OMP_NUM_THREADS": "1"}


def ltpipe(path, *arguments, **options):
    return subprocess.run(
        [sys.executable, "-m", "ltpipe", *arguments],
        env=environment(path),
        capture_output=True,
        text=True,
        timeout=120,
        **options,
    )


def children(process):
    return psutil.Process(process.pid).children()


def wait_until(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


def test_a_job_gives_the_same_bytes_and_messages_as_without(server, tmp_path):
    _, path = server
    outcomes = {}
    for name, where in (("alone", ""), ("forked", path)):
        folder = tmp_path / name
        folder.mkdir()
        arguments = ["draw", "--spec", canonical_json(DRAW), "--output", "out"]
        done = ltpipe(where, *arguments, cwd=folder)
        assert done.returncode == 0, done.stderr
        outcomes[name] = (done.stdout, (folder / "out/subset.h5").read_bytes())
    assert outcomes["alone"] == outcomes["forked"]
    assert "drew 131 training samples" in outcomes["forked"][0]


def test_bad_input_and_standard_input_reach_the_caller(server, tmp_path):
    _, path = server
    spec = canonical_json({**DRAW, "dataset": {**DRAW["dataset"], "max_count": 100000}})
    done = ltpipe(path, "draw", "--spec", "-", "--output", str(tmp_path / "out"), input=spec)
    assert done.returncode == 2
    assert "lower max_count" in done.stderr
    assert not (tmp_path / "out").exists()


def test_jobs_are_run_by_forks_of_the_server_and_end_with_their_caller(server, tmp_path):
    process, path = server
    data = draw(tmp_path)
    spec = {"kind": "stage1", "dataset": DIGITS, "backbone": {**CE, "epochs": 100000}, "seed": 0}
    command = [sys.executable, "-m", "ltpipe", "train", "--spec", canonical_json(spec)]
    command += ["--input", f"data={data}", "--output", str(tmp_path / "out"), "--device", "cpu"]
    caller = subprocess.Popen(
        command, env=environment(path), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    assert wait_until(lambda: (tmp_path / "out/resume/checkpoint.safetensors").exists())
    assert len(children(process)) == 1
    caller.send_signal(signal.SIGKILL)
    caller.wait()
    assert wait_until(lambda: not children(process))
    assert process.poll() is None


def test_the_socket_is_private(server):
    _, path = server
    assert stat.S_IMODE(Path(path).stat().st_mode) == 0o600
    assert stat.S_IMODE(Path(path).parent.stat().st_mode) == 0o700


def test_without_a_server_a_job_runs_where_it_is(tmp_path):
    gone = str(tmp_path / "nobody")
    done = ltpipe(gone, "draw", "--spec", canonical_json(DRAW), "--output", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out/subset.h5").is_file()


def test_other_commands_are_not_handed_over(server, monkeypatch):
    _, path = server
    monkeypatch.setenv(preload.VARIABLE, path)
    assert preload.hand_over(["list"]) is None
    assert preload.hand_over([]) is None


def test_an_idle_server_ends_and_cleans_up(monkeypatch):
    monkeypatch.setenv(preload.VARIABLE, "")
    process = preload.start(0.1)
    path = Path(os.environ[preload.VARIABLE])
    assert wait_until(lambda: process.poll() is not None, 60)
    assert process.returncode == 0
    assert not path.parent.exists()
