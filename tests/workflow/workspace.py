"""A private copy of the package and workflow, and a cut-down experiment that really runs in it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

REPOSITORY = Path(__file__).resolve().parents[2]

EXPERIMENT: dict[str, Any] = {
    "experiment": "small",
    "seeds": [0],
    "datasets": {"digits-lt": None},
    "backbones": {
        "ce": {"use": "resnet8-ce", "epochs": 2, "features": {"views": 2}},
        "kps": {"use": "resnet8-kps", "epochs": 2, "features": {"views": 2}},
    },
    "methods": {
        "CE": {"use": "backbone-head", "backbones": {"features": "ce"}},
        "FFN": {
            "use": "ffn",
            "backbones": {"ce": "ce", "kps": "kps"},
            "w1": [0.0, 0.5, 1.0],
            "epochs": 2,
        },
    },
    "tables": {"main": {"rows": [{"method": "CE"}, {"method": "FFN", "at": {"w1": 0.5}}]}},
    "figures": [{"kind": "class_distribution", "dataset": "digits-lt"}],
}

# For experiments of many short jobs, most of whose time would be torch's import.
PRELOADED: dict[str, Any] = {**EXPERIMENT, "preload": True}

PUBLISH = "Publish the report as results/experiments/small/latest"
REPORT = {"Write the tables, figures and report of small", PUBLISH}


@dataclass
class Workspace:
    """A copy of the sources in `source`, and a folder `work` where Snakemake runs on it.

    `data` is the data root of its runs, if they have one.
    """

    source: Path
    work: Path
    data: Path | None = None

    def write(self, experiment: dict[str, Any], name: str = "experiment.yaml") -> Path:
        """Write an experiment file beside the results."""
        path = self.work / name
        path.write_text(yaml.safe_dump(experiment, sort_keys=False))
        return path

    def environment(self, **more: str) -> dict[str, str]:
        """Return the environment of its processes: this machine's, without what names a run."""
        kept = {name: value for name, value in os.environ.items() if name != "LTPIPE_PLAN"}
        if self.data is not None:
            kept["LTPIPE_DATA"] = str(self.data)
        return {**kept, "PYTHONPATH": str(self.source), "CUDA_VISIBLE_DEVICES": "", **more}

    def command(self, *arguments: str, config: str = "experiment.yaml") -> list[str]:
        """Return the command line of a Snakemake on this workspace's sources."""
        command = [sys.executable, "-m", "snakemake", "-s", str(self.source / "Snakefile")]
        command += [*arguments, "--configfile", str(self.work / config)]
        return command if "--lint" in arguments else [*command, "--cores", "2"]

    def snakemake(
        self,
        *arguments: str,
        config: str = "experiment.yaml",
        check: bool = True,
        **environment: str,
    ) -> subprocess.CompletedProcess[str]:
        """Run Snakemake on this workspace's sources."""
        done = subprocess.run(
            self.command(*arguments, config=config),
            cwd=self.work,
            env=self.environment(**environment),
            capture_output=True,
            text=True,
            timeout=600,
        )
        if check:
            assert done.returncode == 0, done.stdout + done.stderr
        return done

    def started(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        """Start Snakemake and return at once."""
        return subprocess.Popen(
            self.command(*arguments),
            cwd=self.work,
            env=self.environment(**environment),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def planned(self, *arguments: str, config: str = "experiment.yaml") -> set[str]:
        """Return the titles of the jobs that a dry run announces."""
        return titles(self.snakemake("-n", "-p", *arguments, config=config))

    def module(self, name: str) -> Path:
        """Return the file of a module of the copied package by its dotted name."""
        return self.source.joinpath(*name.split(".")).with_suffix(".py")

    def append(self, module: str, text: str = "UNUSED = 1") -> None:
        """Add a line at the end of a module, by its dotted name, of the copied package."""
        path = self.module(module)
        path.write_text(f"{path.read_text()}\n\n{text}\n")

    def edit(self, path: Path, old: str, new: str) -> None:
        """Replace text in a file."""
        text = path.read_text()
        assert old in text, f"{old!r} not in {path}"
        path.write_text(text.replace(old, new, 1))


def titles(done: subprocess.CompletedProcess[str]) -> set[str]:
    """Return what jobs of a run are called, from its log."""
    return set(re.findall(r"^Job \d+: (.+)$", done.stdout + done.stderr, re.MULTILINE))


def copy_sources(target: Path) -> None:
    for name in (
        "ltpipe",
        "snakemake_logger_plugin_ltpipe",
        "config",
        "workflow",
        "profiles",
        "data",
    ):
        shutil.copytree(
            REPOSITORY / name,
            target / name,
            ignore=shutil.ignore_patterns("__pycache__", "raw", "results"),
        )
    for name in ("Snakefile", "environment.yml"):
        shutil.copy(REPOSITORY / name, target / name)


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str] | None = None) -> None:
    """Wait until `condition` holds, at most as long as `process` runs."""
    deadline = time.monotonic() + 300
    while not condition():
        if process is not None:
            assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)
