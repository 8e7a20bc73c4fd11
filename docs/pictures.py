"""Draw the pictures of README.md and docs/: `python docs/pictures.py [REPORT.html]`.

Without a report only the picture of the pipeline is written. The report's is a photograph of a real
page, which takes Chromium: `python docs/pictures.py results/experiments/demo/report.html`.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass
from html import escape
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image

FOLDER = Path(__file__).resolve().parent / "images"
_WIDTH, _HEIGHT = 880, 330
_BLUE, _GREEN, _GREY = ("#0b5cad", "#eaf2fb"), ("#0a7d54", "#e8f6f0"), ("#57606a", "#f3f4f6")
_STYLE = (
    "text{font-family:Helvetica,Arial,sans-serif;font-size:13px;fill:#1f2328}"
    ".head{font-weight:bold}.small{font-size:11.5px;fill:#57606a}.mid{text-anchor:middle}"
)


@dataclass(frozen=True)
class Box:
    """A step: where it stands, its title, the lines below it, its colours."""

    x: int
    y: int
    width: int
    height: int
    title: str
    lines: tuple[str, ...]
    colours: tuple[str, str]


BOXES = (
    Box(
        20,
        84,
        150,
        104,
        "your images",
        ("one folder a class", "or a public set,", "seeded long tail"),
        _GREY,
    ),
    Box(
        220,
        84,
        170,
        104,
        "stage one",
        ("train a backbone:", "minutes to days,", "once; GPU if there is one"),
        _BLUE,
    ),
    Box(
        440,
        84,
        170,
        104,
        "feature store",
        ("HDF5: a vector for", "each image and each", "augmented view of it"),
        _BLUE,
    ),
    Box(
        660,
        84,
        200,
        104,
        "stage two",
        ("FFN, DLSA, CWS, HRJBA,", "ECVL, baselines, yours:", "seconds each, many at once"),
        _GREEN,
    ),
    Box(
        660,
        236,
        200,
        74,
        "table and report",
        ("means over seeds, by class", "size; figures; settings"),
        _GREEN,
    ),
    Box(440, 236, 170, 74, "embeddings", ("from another model:", "HDF5, npz, npy"), _GREY),
)
# Start, end, and whether it is one of the two main paths.
ARROWS = (
    ((170, 136), (220, 136)),
    ((390, 136), (440, 136)),
    ((610, 136), (660, 136)),
    ((760, 188), (760, 236)),
    ((525, 236), (525, 188)),
)


def pipeline() -> str:
    """Return the picture of the pipeline as SVG."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{_HEIGHT}" '
        f'viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="The pipeline, from images to '
        'the report">',
        f"<style>{_STYLE}</style>",
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
        'markerHeight="7" orient="auto"><path d="M0 0L8 4L0 8z" fill="#57606a"/></marker></defs>',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#ffffff"/>',
        *_frame(205, 420, _BLUE, "expensive, rare: kept while nothing that it depends on changes"),
        *_frame(645, 230, _GREEN, "cheap, frequent"),
    ]
    for box in BOXES:
        parts += _box(box)
    for (x1, y1), (x2, y2) in ARROWS:
        parts.append(
            f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="#57606a" stroke-width="1.6" '
            'marker-end="url(#tip)"/>'
        )
    foot = "Snakemake: every box is files with a rule; what changed is made anew, and nothing else"
    parts.append(f'<text class="small" x="20" y="28">{escape(foot)}</text>')
    return "\n".join([*parts, "</svg>", ""])


def _frame(x: int, width: int, colours: tuple[str, str], title: str) -> list[str]:
    return [
        f'<rect x="{x}" y="46" width="{width}" height="158" rx="10" fill="none" '
        f'stroke="{colours[0]}" stroke-dasharray="5 4"/>',
        f'<text class="small" x="{x + 15}" y="68" style="fill:{colours[0]}">{escape(title)}</text>',
    ]


def _box(box: Box) -> list[str]:
    line, ground = box.colours
    middle = box.x + box.width // 2
    parts = [
        f'<rect x="{box.x}" y="{box.y}" width="{box.width}" height="{box.height}" rx="6" '
        f'fill="{ground}" stroke="{line}" stroke-width="1.4"/>',
        f'<text class="head mid" x="{middle}" y="{box.y + 24}">{escape(box.title)}</text>',
    ]
    for number, text in enumerate(box.lines):
        parts.append(
            f'<text class="small mid" x="{middle}" y="{box.y + 46 + 18 * number}">'
            f"{escape(text)}</text>"
        )
    return parts


def photograph(report: Path, target: Path) -> None:
    """Write the top of a report as PNG of 256 colours.

    Raises:
        SystemExit: Chromium is not installed.
    """
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        raise SystemExit("a picture of the report takes Chromium")
    with TemporaryDirectory() as folder:
        shot = Path(folder, "shot.png")
        subprocess.run(
            [
                program,
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--hide-scrollbars",
                "--window-size=1120,1860",
                f"--screenshot={shot}",
                report.resolve().as_uri(),
            ],
            check=True,
            capture_output=True,
        )
        with Image.open(shot) as image:
            top = image.convert("RGB").crop((50, 10, 1080, 1850)).resize((721, 1288), Image.LANCZOS)
            # Few colours by number of pixels would lose the thin lines of the figures.
            top.quantize(128, method=Image.Quantize.MAXCOVERAGE).save(target, optimize=True)


def main() -> int:
    """Write the pictures."""
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / "pipeline.svg").write_text(pipeline(), encoding="utf-8")
    if len(sys.argv) > 1:
        photograph(Path(sys.argv[1]), FOLDER / "report.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
