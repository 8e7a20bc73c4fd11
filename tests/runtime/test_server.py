"""Jobs forked by the server end as they would in a process of their own."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ltpipe.config.experiment import load_experiment
from ltpipe.plan.layout import build_plan
from ltpipe.runtime import client
from ltpipe.runtime.server import start_server, sweep

pytestmark = pytest.mark.heavy

REPOSITORY = Path(__file__).resolve().parents[2]
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

# Stands in for ltpipe.cli.program where a test needs jobs that last or fail in one way.
JOBS = """
import os, signal, sys, time

def main(arguments):
    kind, *rest = arguments[3:] if arguments[1] == "--spec" else arguments[1:]
    print("parent", os.getppid(), flush=True)
    if kind == "last":
        if rest:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        print("job", os.getpid(), flush=True)
        time.sleep(60)
    elif kind == "fail":
        raise RuntimeError("this job fails")
    elif kind == "stop":
        sys.exit("no more")
    elif kind == "show":
        print(os.getcwd(), os.environ.get("COLOUR"), os.environ.get("LTPIPE_SERVER"), sys.argv)
        print("warned", file=sys.stderr)
    return 0
"""


JOB = ("subset", "--spec", "{}")


class Running:
    """A server and the environment of its clients."""

    def __init__(self, source: Path, idle_seconds: float = 60.0) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("LTPIPE_DEVICE", "cpu")
            patch.setenv("PYTHONPATH", str(source))
            patch.setenv(client.VARIABLE, "")
            self.process = start_server(idle_seconds)
            assert self.process is not None
            self.environment = {**os.environ, **ONE_THREAD}
        self.socket = Path(self.environment[client.VARIABLE])
        # Not beside the socket, which the next server sweeps up once this one was killed.
        self.folder = source

    def start(self, *arguments: str, **options) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "ltpipe", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **{"env": self.environment, "cwd": self.folder, **options},
        )

    def run(self, *arguments: str, **options) -> subprocess.CompletedProcess[str]:
        process = self.start(*arguments, **options)
        out, err = process.communicate(timeout=60)
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    def runs(self, done: subprocess.CompletedProcess[str]) -> bool:
        """Whether a stand-in job said that this server is its parent."""
        return f"parent {self.process.pid}\n" in done.stdout

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(10)
        assert not self.socket.parent.exists()


@pytest.fixture(scope="module", autouse=True)
def interruptible():
    """Let interrupts through, also where the tests run in the background of a shell."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def real():
    """A server of this package."""
    running = Running(REPOSITORY)
    yield running
    running.close()


def copy_package(folder: Path) -> Path:
    """Copy what clients and server import, with stand-in jobs and no library to import."""
    package, source = folder / "ltpipe", REPOSITORY / "ltpipe"
    package.mkdir(parents=True)
    for name in ("__init__.py", "__main__.py"):
        shutil.copy(source / name, package)
    for room in ("runtime", "utils"):
        shutil.copytree(source / room, package / room)
    path = package / "runtime/server.py"
    text, count = re.subn(
        r"(def preload\(\).*?\n).*?\n\n\n",
        r"\1    importlib.import_module(PROGRAM)\n\n\n",
        path.read_text(),
        flags=re.DOTALL,
    )
    assert count == 1
    path.write_text(text)
    (package / "cli").mkdir()
    (package / "cli/__init__.py").touch()
    (package / "cli/program.py").write_text(JOBS)
    return folder


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_package(tmp_path_factory.mktemp("package"))


@pytest.fixture(scope="module")
def running(package: Path):
    """A server whose jobs are the stand-ins."""
    running = Running(package)
    yield running
    running.close()


def job_of(process: subprocess.Popen[str]) -> int:
    """Return the process id that a lasting stand-in prints."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("job "):
            return int(line.split()[1])
    raise AssertionError(process.stderr.read() if process.stderr else "")


def gone_within(pid: int, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.02)
    return False


def plain(environment: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name != client.VARIABLE}


def test_a_job_leaves_the_same_bytes(real: Running, tmp_path: Path):
    (cell,) = build_plan(load_experiment(REPOSITORY / "config/config.yaml")).of_kind("data")
    common = ("subset", "--spec", "-")
    for name, environment in (("plain", plain(real.environment)), ("forked", real.environment)):
        with open(tmp_path / "spec", "w+") as spec:
            spec.write(cell.spec_text)
            spec.seek(0)
            output = tmp_path / name / Path(cell.folder).name
            done = real.run(*common, "--output", str(output), stdin=spec, env=environment)
        assert (done.returncode, done.stderr) == (0, "")
    first, second = (next((tmp_path / name).iterdir()) for name in ("plain", "forked"))
    assert (first / "subset.h5").read_bytes() == (second / "subset.h5").read_bytes()
    manifests = [json.loads((folder / "manifest.json").read_text()) for folder in (first, second)]
    memory = [manifest.pop("peak_memory_mib") for manifest in manifests]
    for manifest in manifests:
        del manifest["wall_s"], manifest["checksum"]
    assert manifests[0] == manifests[1]
    assert 50 < memory[1] < 4 * memory[0]


def test_bad_input_is_the_same_message_and_status(real: Running, tmp_path: Path):
    arguments = ("classify", "--spec", "{", "--output", str(tmp_path / "out"))
    forked = real.run(*arguments)
    alone = real.run(*arguments, env=plain(real.environment))
    assert forked.stderr.startswith("ltpipe: error: --spec: not JSON")
    assert (forked.returncode, forked.stderr) == (alone.returncode, alone.stderr)
    assert forked.returncode == 2


def test_help_and_wrong_options_end_as_in_a_process_of_their_own(real: Running):
    assert real.run("train", "--spec", "{}", "--help").returncode == 0
    assert real.run("train", "--spec", "{}", "--no-such-option").returncode == 2


def test_only_the_caller_may_use_the_socket(running: Running):
    assert stat.S_IMODE(running.socket.stat().st_mode) == 0o600
    assert stat.S_IMODE(running.socket.parent.stat().st_mode) == 0o700


def test_a_server_that_forks_has_one_thread(real: Running):
    real.run("train", "--spec", "{}", "--help")
    tasks = Path(f"/proc/{real.process.pid}/task")
    if not tasks.is_dir():
        pytest.skip("this system has no /proc")
    assert len(list(tasks.iterdir())) == 1


def test_a_job_has_its_callers_folder_environment_and_files(running: Running, tmp_path: Path):
    environment = {**running.environment, "COLOUR": "öker"}
    done = running.run(*JOB, "show", "é", cwd=tmp_path, env=environment)
    assert done.returncode == 0
    assert running.runs(done)
    assert f"{tmp_path} öker None {['ltpipe', *JOB, 'show', 'é']}\n" in done.stdout
    assert done.stderr == "warned\n"


def test_an_error_in_a_job_is_shown_where_it_was_asked_for(running: Running):
    done = running.run(*JOB, "fail")
    assert running.runs(done)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert done.stderr.endswith("RuntimeError: this job fails\n")
    done = running.run(*JOB, "stop")
    assert (done.returncode, done.stderr) == (1, "no more\n")


def test_a_job_runs_alone_where_code_has_changed(tmp_path: Path):
    package = copy_package(tmp_path)
    running = Running(package)
    assert running.runs(running.run(*JOB, "show"))
    path = package / "ltpipe/cli/program.py"
    path.write_text(JOBS.replace("warned", "warned anew"))
    done = running.run(*JOB, "show")
    running.close()
    assert not running.runs(done)
    assert (done.returncode, done.stderr) == (0, "warned anew\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_go_on_to_the_job(running: Running, number):
    process = running.start(*JOB, "last")
    job = job_of(process)
    process.send_signal(number)
    _, err = process.communicate(timeout=10)
    assert process.returncode == -number, err
    assert gone_within(job, 10)
    assert err.rstrip().endswith("KeyboardInterrupt") == (number == signal.SIGINT)


@pytest.mark.parametrize("stubborn", [(), ("stubborn",)])
def test_a_job_ends_when_its_caller_is_killed(running: Running, stubborn):
    process = running.start(*JOB, "last", *stubborn)
    job = job_of(process)
    process.kill()
    process.communicate(timeout=10)
    assert gone_within(job, 8)
    assert running.runs(running.run(*JOB, "show"))


def test_jobs_run_beside_each_other(running: Running):
    first, second = running.start(*JOB, "last"), running.start(*JOB, "last")
    jobs = {job_of(first), job_of(second)}
    assert len(jobs) == 2
    for process in (first, second):
        process.terminate()
        process.communicate(timeout=10)


@pytest.mark.parametrize(
    "change",
    [
        {client.VARIABLE: "/nowhere/socket"},
        {client.VARIABLE: ""},
        {"OMP_NUM_THREADS": "2"},
        {"PYTHONPATH": "{package}:/elsewhere"},
    ],
)
def test_a_job_that_the_server_cannot_take_runs_alone(running: Running, package: Path, change):
    change = {name: value.format(package=package) for name, value in change.items()}
    done = running.run(*JOB, "show", env={**running.environment, **change})
    assert (done.returncode, done.stderr) == (0, "warned\n")
    assert not running.runs(done)


def test_other_commands_are_not_handed_over(running: Running):
    assert not running.runs(running.run("list", "show"))


def test_jobs_go_on_when_their_server_dies(package: Path):
    running = Running(package)
    process = running.start(*JOB, "last")
    job = job_of(process)
    running.process.kill()
    running.process.wait()
    assert running.run(*JOB, "show").returncode == 0
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == -signal.SIGTERM
    process.communicate()
    assert gone_within(job, 10)
    # Unless another server swept it up.
    shutil.rmtree(running.socket.parent, ignore_errors=True)


def test_a_job_that_is_killed_is_a_line_and_a_status(running: Running):
    process = running.start(*JOB, "last")
    os.kill(job_of(process), signal.SIGKILL)
    _, err = process.communicate(timeout=10)
    assert process.returncode == 1
    assert err == "ltpipe: error: the job was killed, or crashed; run again\n"


def test_the_next_server_sweeps_up_after_killed_ones(running: Running, package: Path):
    killed = Running(package)
    killed.process.kill()
    killed.process.wait()
    temporary = killed.socket.parent.parent
    other, begun, fresh_one = (temporary / f"ltpipe-{n}" for n in ("notaserv", "12345678", "new"))
    for folder in (other, begun, fresh_one):
        folder.mkdir()
    (other / "mine").touch()
    os.utime(begun, (0, 0))
    try:
        fresh = Running(package)
        sweep(temporary)
        assert not killed.socket.parent.exists() and not begun.exists()
        assert other.exists() and fresh_one.exists()
        for alive in (running, fresh):
            assert alive.runs(alive.run(*JOB, "show"))
        fresh.close()
    finally:
        shutil.rmtree(other)
        fresh_one.rmdir()


@pytest.mark.parametrize("kind", ["long", "missing", "without sockets"])
def test_without_room_for_a_server_there_is_a_line_and_no_server(
    monkeypatch, tmp_path, capsys, kind
):
    folder = tmp_path / ("long" * 30)
    folder.mkdir()
    monkeypatch.setenv("LTPIPE_DEVICE", "cpu")
    monkeypatch.delenv(client.VARIABLE, raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(folder / "gone" if kind == "missing" else folder))
    if kind == "without sockets":
        monkeypatch.delattr("socket.AF_UNIX")
    assert start_server() is None
    assert client.VARIABLE not in os.environ
    assert list(folder.iterdir()) == []
    line = capsys.readouterr().err
    assert line.startswith("preload: every job imports its libraries itself")
    assert line.count("\n") == 1


def test_a_job_runs_alone_when_the_server_dies_before_taking_it(package: Path):
    running = Running(package)
    process = running.start(*JOB, "show")
    running.process.kill()
    running.process.wait()
    out, err = process.communicate(timeout=10)
    assert (process.returncode, err) == (0, "warned\n")
    assert f"parent {running.process.pid}\n" not in out
    shutil.rmtree(running.socket.parent, ignore_errors=True)


def test_an_idle_server_leaves(package: Path):
    running = Running(package, idle_seconds=0.5)
    assert running.process.wait(10) == 0
    assert not running.socket.parent.exists()
    assert running.run(*JOB, "show", cwd=package).returncode == 0


def test_a_server_leaves_with_its_parent(tmp_path: Path):
    code = "from ltpipe.runtime.server import start_server; print(start_server().pid); "
    code += f"import os; print(os.environ['{client.VARIABLE}'])"
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "LTPIPE_DEVICE": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True
    )
    pid, socket = done.stdout.split()
    deadline = time.monotonic() + 60
    while Path(socket).parent.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(socket).parent.exists()
    assert gone_within(int(pid), 10)


def test_there_is_no_server_beside_gpus(monkeypatch):
    monkeypatch.setenv("LTPIPE_DEVICE", "auto")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.delenv(client.VARIABLE, raising=False)
    assert start_server() is None
    assert client.VARIABLE not in os.environ
