"""Kill a running workflow at random moments; each time the next run must end as an unbroken one.

    python tests/faults/kill.py --moments 100                      the demo, cut down
    python tests/faults/kill.py --moments 5 --experiment config/config.yaml

A Snakemake run is started by a shell in an empty folder and killed at a moment drawn evenly from
the length of an unbroken run: every process at once, or Snakemake, or the shell above it, a shell
between it and a job, a job, or the job server alone. Then the folder is unlocked, as Snakemake
says, and the workflow is run again. What must hold: once Snakemake has ended, no process of its run
lives ten seconds later; the second run ends well; every artifact that was finished at the kill is
left as it was; every file is byte for byte that of the unbroken run, times and memory aside;
`ltpipe verify` finds nothing wrong, and the second run leaves nothing half-written.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from ltpipe.artifacts.verify import verify
from ltpipe.utils.io import is_temporary
from tests.workflow.workspace import EXPERIMENT, Workspace, copy_sources

# What holds times, memory or the place of a run, and what is drawn from these.
RECORDS = {"manifest.json", "history.csv", "report.html", "index.csv", ".snakemake_timestamp"}
MARK = "LTPIPE_TEST_OF_KILLS"
VICTIMS = ("all", "snakemake", "wrapper", "shell", "job", "server")
STAGES = ("data", "stage1", "features", "filters", "stage2", "experiments")


def start(workspace: Workspace, *more: str, mark: str = "") -> subprocess.Popen[bytes]:
    """Start Snakemake, by a shell, in a session of its own; its processes carry a mark."""
    command = [sys.executable, "-m", "snakemake", "-s", str(workspace.source / "Snakefile")]
    command += ["--cores", "2", "--configfile", "experiment.yaml", *more]
    return subprocess.Popen(
        ["bash", "-c", '"$@"; exit $?', "bash", *command],
        cwd=workspace.work,
        env={
            **os.environ,
            "PYTHONPATH": str(workspace.source),
            "CUDA_VISIBLE_DEVICES": "",
            "OMP_NUM_THREADS": "1",
            MARK: mark,
        },
        stdout=subprocess.DEVNULL,
        stderr=(workspace.work / "stderr").open("ab"),
        start_new_session=True,
    )


def marked(mark: str) -> dict[int, list[str]]:
    """Return the processes that carry a mark, and their command lines."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"{MARK}={mark}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                words = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
                found[int(folder.name)] = words
    return found


def part(words: list[str]) -> str:
    """Return which part of a run a command line is."""
    if "snakemake" in words:
        return "wrapper" if words[0] == "bash" else "snakemake"
    if "ltpipe.runtime.server" in words:
        return "server"
    return "shell" if words[0].endswith(("bash", "sh")) else "job"


def end(
    process: subprocess.Popen[bytes], number: signal.Signals, mark: str, victim: str = "all"
) -> str:
    """Send a signal to a victim, and wait for the run's end; return what was hit.

    SIGKILL to `all` reaches every process at once.

    Raises:
        AssertionError: processes of the run live ten seconds after its Snakemake.
    """
    if victim == "all" and number == signal.SIGKILL:
        # Stopped first, so that none starts another one meanwhile.
        stopped: set[int] = set()
        while new := marked(mark).keys() - stopped:
            for pid in new:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGSTOP)
            stopped |= new
        hit = sorted(stopped)
    else:
        wanted = "snakemake" if victim == "all" else victim
        hit = [pid for pid, words in marked(mark).items() if part(words) == wanted][:1]
    for pid in hit:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
    deadline = time.monotonic() + 600
    while (left := marked(mark)) and any(part(words) == "snakemake" for words in left.values()):
        assert time.monotonic() < deadline, left
        time.sleep(0.1)
    deadline = time.monotonic() + 10
    while left := marked(mark):
        assert time.monotonic() < deadline, f"live on without Snakemake: {left}"
        time.sleep(0.1)
    process.wait()
    return victim if hit else f"no {victim}"


def finished(work: Path) -> dict[Path, tuple[int, bytes]]:
    """Return the manifests that are there, with time and content."""
    return {
        path: (path.stat().st_mtime_ns, path.read_bytes())
        for path in (work / "results").rglob("manifest.json")
    }


def contents(work: Path) -> dict[str, bytes]:
    """Return every file that must come out the same."""
    results = work / "results"
    return {
        path.relative_to(results).as_posix(): path.read_bytes()
        for stage in STAGES
        for path in (results / stage).rglob("*")
        if path.is_file() and path.name not in RECORDS and not is_temporary(path)
    }


def prepare(base: Path, experiment: dict) -> Workspace:
    """Make a workspace with sources and an experiment file."""
    workspace = Workspace(base / "source", base / "reference")
    copy_sources(workspace.source)
    workspace.work.mkdir()
    workspace.write(experiment)
    return workspace


def run_through(workspace: Workspace) -> float:
    """Run to the end; return the seconds that it took."""
    started = time.monotonic()
    if start(workspace).wait():
        sys.exit(f"the unbroken run failed: {(workspace.work / 'stderr').read_text()}")
    return time.monotonic() - started


def check(
    reference: Workspace,
    work: Path,
    after: float,
    number: signal.Signals = signal.SIGKILL,
    victim: str = "all",
) -> str:
    """Kill a run after some seconds, run again, and return in words what was there at the kill.

    Raises:
        AssertionError: something finished was lost, something came out otherwise, or a process
            outlived its run.
    """
    work.mkdir()
    shutil.copy(reference.work / "experiment.yaml", work)
    for path in reference.work.glob("*.npz"):
        shutil.copy(path, work)
    workspace = Workspace(reference.source, work)
    mark = f"{os.getpid()} {work}"
    process = start(workspace, mark=mark)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=after)
    hit = end(process, number, mark, victim)
    before = finished(work)
    half = [path for path in (work / "results").rglob("*") if is_temporary(path)]
    unlocked = start(workspace, "--unlock").wait()
    assert unlocked == 0, (work / "stderr").read_text()
    assert start(workspace).wait() == 0, (work / "stderr").read_text()
    now = finished(work)
    for path, state in before.items():
        assert now[path] == state, f"{path} was finished and has been made again"
    expected, found = contents(reference.work), contents(work)
    assert expected.keys() == found.keys(), expected.keys() ^ found.keys()
    different = [name for name in expected if expected[name] != found[name]]
    assert not different, different
    assert verify(work / "results").wrong == []
    left = [path for path in (work / "results").rglob("*") if is_temporary(path)]
    assert not left, left
    return f"{hit}: {len(before)} of {len(now)} artifacts finished, {len(half)} files half-written"


def moments(number: int, length: float, seed: int) -> Iterator[float]:
    """Yield moments spread evenly over the length of a run."""
    stream = random.Random(seed)
    for _ in range(number):
        yield stream.uniform(0, length)


def main() -> int:
    """Kill as often as asked; 1 if a run did not come out as it should."""
    parser = argparse.ArgumentParser(description="Kill a running workflow at random moments.")
    parser.add_argument("--moments", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--signal", choices=["KILL", "TERM", "INT"], default="KILL")
    parser.add_argument("--preload", action="store_true", help="with a job server")
    parser.add_argument("--experiment", type=Path, help="default: the demo, cut down")
    parser.add_argument("--folder", type=Path, help="where to work (default: a temporary folder)")
    options = parser.parse_args()
    base = options.folder or Path(tempfile.mkdtemp(prefix="ltpipe-kill-"))
    base.mkdir(exist_ok=True, parents=True)
    values = {**EXPERIMENT, "preload": options.preload}
    if options.experiment:
        values = yaml.safe_load(options.experiment.read_text(encoding="utf-8"))
    reference = prepare(base, values)
    length = run_through(reference)
    print(f"an unbroken run took {length:.1f} s; working in {base}", flush=True)
    failed = 0
    for place, after in enumerate(moments(options.moments, length, options.seed), 1):
        work = base / f"run{place}"
        try:
            victim = VICTIMS[place % len(VICTIMS)]
            said = check(reference, work, after, signal.Signals[f"SIG{options.signal}"], victim)
            shutil.rmtree(work)
        except AssertionError as error:
            failed += 1
            said = f"WRONG: {error}"
        print(f"{place:3d}: killed after {after:5.1f} s: {said}", flush=True)
    print(f"{options.moments - failed} of {options.moments} runs came out as the unbroken one")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
