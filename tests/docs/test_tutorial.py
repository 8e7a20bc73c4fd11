"""The tutorial: every command block, line by line, in a copy of the repository."""

from __future__ import annotations

import csv
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.workflow.workspace import REPOSITORY, copy_sources, titles

PAGE = (REPOSITORY / "docs/tutorial.md").read_text()
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A copy of the repository in which the tutorial is followed."""
    folder = tmp_path_factory.mktemp("tutorial") / "ltpipe"
    folder.mkdir()
    copy_sources(folder)
    return folder


def shell(place: Path, line: str) -> str:
    """Run one line as a reader would; return what it prints."""
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(place),
        "CUDA_VISIBLE_DEVICES": "",
    }
    environment.pop("LTPIPE_DATA", None)
    done = subprocess.run(
        ["bash", "-c", line],
        cwd=place,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr


def follow(place: Path) -> list[tuple[str, str]]:
    """Save scripts, run lines, change settings, block by block; return each line's output."""
    ran = []
    old = None
    for language, text in _BLOCK.findall(PAGE):
        if language == "python":
            name = re.fullmatch(r"# save as: (\S+)", text.splitlines()[0]).group(1)
            (place / name).write_text(text)
        elif language == "yaml" and old is None:
            old = text
        elif language == "yaml":
            file = place / "photos.yaml"
            assert file.read_text().count(old) == 1
            file.write_text(file.read_text().replace(old, text))
        elif language == "sh":
            ran += [(line, shell(place, line)) for line in text.splitlines()]
    return ran


@pytest.mark.workflow
def test_the_tutorial_runs(place):
    (_, _), (_, said), (_, first), (_, table), (_, dry), (_, second), *rest = follow(place)
    assert "10 classes, 280 training samples, none for validation, 200 for testing" in said
    assert "imbalance          50 " in said
    assert {f"Train ce on photos, seed {seed}" for seed in range(3)} <= titles_of(first)
    for method in ("CE", "cRT", "LA", "BalancedSoftmax", "MiSLAS", "FFN"):
        assert f"\n{method} " in table
    assert (
        titles_of(dry)
        == titles_of(second)
        == {
            *(f"Run FFN on photos, seed {seed}" for seed in range(3)),
            "Publish the report as results/experiments/photos/latest",
            "Write the tables, figures and report of photos",
        }
    )
    results = place / "results/experiments/photos/latest"
    assert (results / "report.html").is_file()
    with (results / "tables/main.csv").open() as handle:
        rows = list(csv.DictReader(handle))
    few = {row["label"]: float(row["mean"]) for row in rows if row["metric"] == "few"}
    assert sum(label.startswith("FFN") for label in few) == 5
    assert few["MiSLAS"] > few["CE"]
    if rest:
        with (place / "answers.csv").open() as handle:
            assert len(list(csv.DictReader(handle))) == 20


def titles_of(text: str) -> set[str]:
    return titles(subprocess.CompletedProcess([], 0, text, ""))
