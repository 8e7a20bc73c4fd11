"""Fill the tables of README.md and docs/ from the files in data/results/; none is typed by hand.

    python docs/tables.py            rewrite the pages
    python docs/tables.py --check    fail if one would change

A region of a page names a file, and may name one of its tables by its heading and some of its rows:

    <!-- results: ecvl_digits.md | Ablation on digits-LT | rows: BALLAD; ECVL -->
    <!-- end of results -->

Markdown gives a table with the note below it, CSV its columns `name` and `ratio`,
the newest row of each name and processor, text a block.
"""

from __future__ import annotations

import argparse
import csv
import os
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "data/results"
_REGION = re.compile(r"(<!-- results: ([^\n]*) -->\n).*?(<!-- end of results -->)", re.DOTALL)


def pages(root: Path = ROOT) -> list[Path]:
    """Return the pages that may hold regions."""
    return [root / "README.md", *sorted((root / "docs").glob("*.md"))]


def filled(page: Path) -> str:
    """Return the page's text with every region made anew.

    Raises:
        ValueError: a region names a file, table or row that is not there, or has no end.
    """
    text = page.read_text(encoding="utf-8")
    if text.count("<!-- results:") != len(_REGION.findall(text)):
        raise ValueError(f"{page}: a results region has no end")

    def region(match: re.Match[str]) -> str:
        try:
            return f"{match[1]}{render(match[2], page.parent)}{match[3]}"
        except (ValueError, OSError) as error:
            raise ValueError(f"{page}: results: {match[2]}: {error}") from None

    return _REGION.sub(region, text)


def render(what: str, folder: Path) -> str:
    """Return what stands in a region of a page in `folder`."""
    name, *options = (part.strip() for part in what.split("|"))
    path = RESULTS / name
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".txt":
        return f"```text\n{text.rstrip()}\n```\n"
    rows = next((option[5:].split(";") for option in options if option.startswith("rows:")), None)
    rows = None if rows is None else [row.strip() for row in rows]
    heading = next((option for option in options if not option.startswith("rows:")), None)
    lines = _from_csv(path) if path.suffix == ".csv" else _from_markdown(text, heading)
    if rows is not None:
        lines = _chosen(lines, rows)
    link = os.path.relpath(path, folder)
    return "\n".join([*lines, "", f"From [{path.relative_to(ROOT)}]({link}).", ""])


def _from_markdown(text: str, heading: str | None) -> list[str]:
    """Return the table under `heading`, or the only one, and the note below it."""
    sections = re.split(r"^#+ +(.+)$", text, flags=re.MULTILINE)
    tables = {
        title.strip(): body
        for title, body in zip(sections[1::2], sections[2::2], strict=True)
        if re.search(r"^\|", body, re.MULTILINE)
    }
    if heading is None and len(tables) != 1:
        raise ValueError(f"name one of its tables: {'; '.join(tables)}")
    if heading is not None and heading not in tables:
        raise ValueError(f"there is no table {heading!r}; known: {'; '.join(tables)}")
    body = tables[heading] if heading is not None else next(iter(tables.values()))
    paragraphs = [part.strip() for part in body.strip().split("\n\n")]
    place = next(i for i, part in enumerate(paragraphs) if part.startswith("|"))
    note = [part for part in paragraphs[place + 1 : place + 2] if part.startswith("Test set")]
    return [*paragraphs[place].splitlines(), *(line for part in note for line in ("", part))]


def _from_csv(path: Path) -> list[str]:
    with path.open(encoding="utf-8", newline="") as handle:
        read = list(csv.DictReader(handle))
    # Newer rows stand below older ones of the same name; quick runs are of other sizes.
    kept = [row for row in read if row["ratio"] and row.get("extent") != "quick"]
    newest = {(row["name"], _processor(row)): float(row["ratio"]) for row in kept}
    processors = sorted({processor for _, processor in newest if processor}, reverse=True)
    lines = [
        f"| what | {' | '.join(processors)} |",
        f"| --- |{' ---: |' * len(processors)}",
    ]
    for name in dict.fromkeys(name for name, _ in newest):
        ratios = [newest.get((name, processor)) for processor in processors]
        if any(ratio is not None for ratio in ratios):
            lines.append(f"| {name} | {' | '.join(map(_ratio, ratios))} |")
    return lines


def _processor(row: dict[str, str]) -> str:
    """Return the processor of a row; nothing where it is not said whether it has AMX."""
    model, units, *_ = (part.strip() for part in row["machine"].split(","))
    return f"{model.replace('(R)', '').removesuffix(' Processor')}, {units}" * ("AMX" in units)


def _ratio(value: float | None) -> str:
    """Return a ratio with three digits."""
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _chosen(lines: list[str], wanted: list[str]) -> list[str]:
    """Keep the rows whose first cell is wanted, in the table's order."""
    rows = {line.split("|")[1].strip(): line for line in lines[2:] if line.startswith("|")}
    if missing := [row for row in wanted if row not in rows]:
        raise ValueError(f"there is no row {missing[0]!r}; known: {'; '.join(rows)}")
    kept = [line for name, line in rows.items() if name in wanted]
    return [*lines[:2], *kept, *(line for line in lines[2:] if not line.startswith("|"))]


def main() -> int:
    """Rewrite or check the pages; 1 where a check finds one that differs."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing, fail on differences")
    check = parser.parse_args().check
    differing = [page for page in pages() if filled(page) != page.read_text(encoding="utf-8")]
    for page in differing:
        print(f"{page.relative_to(ROOT)}: {'differs' if check else 'written'}")
        if not check:
            page.write_text(filled(page), encoding="utf-8")
    return int(check and bool(differing))


if __name__ == "__main__":
    sys.exit(main())
