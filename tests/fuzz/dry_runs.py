"""Snakemake's dry run on experiment files by the grammar: no tracebacks, none over ten seconds.

    python tests/fuzz/dry_runs.py --files 500

Each file is planned by Snakemake's own main function in a fork of a process that has imported it.
Ten seconds are of the processor's time, which does not depend on what else the machine does.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import os
import resource
import sys
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, seed, settings

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.fuzz.grammar import texts

REPOSITORY = Path(__file__).resolve().parents[2]
LIMIT_SECONDS = 10


def drawn(files: int, number: int) -> list[str]:
    """Return texts of experiment files, the same ones each time."""
    found: list[str] = []
    profile = settings(
        max_examples=files, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )

    def keep(text: str) -> None:
        found.append(text)

    while len(found) < files:
        seed(number)(profile(given(texts())(keep)))()
        number += 1
    return found[:files]


def dry_run(path: Path) -> tuple[int, str, float]:
    """Return status, output and seconds of the processor's time of a dry run."""
    output = path.with_suffix(".out")
    pid = os.fork()
    if pid == 0:
        status = 70
        try:
            handle = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            for stream in (1, 2):
                os.dup2(handle, stream)
            resource.setrlimit(resource.RLIMIT_CPU, (LIMIT_SECONDS * 3, LIMIT_SECONDS * 3))
            from snakemake import cli

            command = ["-s", str(REPOSITORY / "Snakefile"), "-n", "--cores", "1", "--nolock"]
            try:
                cli.main([*command, "--configfile", str(path)])
            except SystemExit as error:
                status = int(error.code or 0)
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            os._exit(status)
    _, status, used = os.wait4(pid, 0)
    said = output.read_text(encoding="utf-8", errors="replace")
    return os.waitstatus_to_exitcode(status), said, used.ru_utime + used.ru_stime


def kind_of(status: int, said: str, seconds: float) -> str:
    """Return how a dry run ended, in a word or two."""
    if seconds > LIMIT_SECONDS:
        return "over ten seconds"
    if "Traceback" in said or status not in (0, 1):
        return "traceback"
    if status == 0:
        return "planned"
    # What Snakemake itself can't read as YAML never reaches the Snakefile.
    is_line = said.count("experiment file: ") == 1 or "Config file " in said
    return "one line" if is_line else "other words"


def main() -> int:
    """Print the counts; 1 if there was a traceback, a slow one, or other words than one line."""
    parser = argparse.ArgumentParser(description="Dry runs on experiment files by a grammar.")
    parser.add_argument("--files", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    found: collections.Counter[str] = collections.Counter()
    slowest = 0.0
    # Each fork is a main process of its own.
    os.environ.pop("LTPIPE_PLAN", None)
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        for number, text in enumerate(drawn(options.files, options.seed)):
            path = Path(folder, f"{number}.yaml")
            path.write_bytes(text.encode("utf-8", "surrogatepass"))
            result: Any = dry_run(path)
            kind = kind_of(*result)
            found[kind] += 1
            slowest = max(slowest, result[2])
            if kind not in ("planned", "one line"):
                print(f"{kind}, status {result[0]}:\n{text}\n{result[1][-3000:]}", flush=True)
            if number % 50 == 49:
                print(f"{number + 1}: {json.dumps(found, sort_keys=True)}", flush=True)
    print(f"{options.files} files: {json.dumps(found, sort_keys=True)}, slowest {slowest:.1f} s")
    return 0 if found.keys() <= {"planned", "one line"} else 1


if __name__ == "__main__":
    sys.exit(main())
