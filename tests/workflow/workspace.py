"""A private copy of the package and workflow, and a cut-down experiment that really runs in it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
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


@dataclass
class Workspace:
    """A copy of the sources in `source`, and a folder `work` where Snakemake runs on it."""

    source: Path
    work: Path

    def write(self, experiment: dict[str, Any], name: str = "experiment.yaml") -> Path:
        """Write an experiment file beside the results."""
        path = self.work / name
        path.write_text(yaml.safe_dump(experiment, sort_keys=False))
        return path

    def snakemake(
        self, *arguments: str, config: str = "experiment.yaml", check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run Snakemake on this workspace's sources."""
        command = [sys.executable, "-m", "snakemake", "-s", str(self.source / "Snakefile")]
        command += [*arguments, "--configfile", str(self.work / config)]
        if "--lint" not in arguments:
            command += ["--cores", "2"]
        done = subprocess.run(
            command,
            cwd=self.work,
            env={**os.environ, "PYTHONPATH": str(self.source), "CUDA_VISIBLE_DEVICES": ""},
            capture_output=True,
            text=True,
            timeout=600,
        )
        if check:
            assert done.returncode == 0, done.stdout + done.stderr
        return done

    def planned(self, *arguments: str, config: str = "experiment.yaml") -> set[str]:
        """Return the titles of the jobs that a dry run announces."""
        return titles(self.snakemake("-n", *arguments, config=config))

    def append(self, module: str, text: str = "UNUSED = 1") -> None:
        """Add a line at the end of a module of the copied package."""
        path = self.source / "ltpipe" / module
        path.write_text(f"{path.read_text()}\n\n{text}\n")

    def edit(self, module: str, old: str, new: str) -> None:
        """Replace text in a module of the copied package."""
        path = self.source / "ltpipe" / module
        text = path.read_text()
        assert old in text, f"{old!r} not in {module}"
        path.write_text(text.replace(old, new, 1))


def titles(done: subprocess.CompletedProcess[str]) -> set[str]:
    """Return what jobs of a run are called, from its log."""
    return set(re.findall(r"^Job \d+: (.+)$", done.stdout + done.stderr, re.MULTILINE))


def copy_sources(target: Path) -> None:
    for name in ("ltpipe", "config", "workflow", "data"):
        shutil.copytree(
            REPOSITORY / name,
            target / name,
            ignore=shutil.ignore_patterns("__pycache__", "raw"),
        )
    for name in ("Snakefile", "environment.yml"):
        shutil.copy(REPOSITORY / name, target / name)
