"""Each bad input is one line that docs/bad_input.md shows; nothing is left behind."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from ltpipe.cli.program import main
from tests.bad_input.cases import CASES, Case

REPOSITORY = Path(__file__).resolve().parents[2]
PAGE = REPOSITORY / "docs" / "bad_input.md"
HEAD = """# Bad input, and what is said of it

Each row is a case of `tests/bad_input/cases.py`. `tests/bad_input/test_table.py` runs the command,
and checks that it ends with status 2 and exactly this line, writes nothing, shows no traceback.
`python tests/bad_input/test_table.py` writes this page anew.

| | what is wrong | what `ltpipe` says |
| ---: | --- | --- |
"""


_LIBRARIES = (
    r"(?<=not a readable feature file \().*(?=\); delete)",
    r"(?<=not YAML: ).*",
    r"(?<=a\.npz can't be read: ).*",
    r"(?<=a\.npy can't be read: ).*",
    r"(?<=\.png can't be read: ).*",
    r"(?<=\.png is too big: ).*",
    r"(?<=--spec: not JSON: ).*",
    r"(?<=would take ).*",
    r"(?<=a\.h5 can't be read: Unable).*",
    # So do later versions of this package, with every name that is added.
    r"(?<=known: ).*",
    r"(?<=known here: ).*",
)


def said(case: Case, place: Path, capsys_readouterr) -> str:
    """Run a case in an empty folder, and return its line without what depends on the machine."""
    command = case.prepare(place)
    before = {path for path in place.rglob("*") if path.is_file()}
    capsys_readouterr()
    status = main(command)
    line = capsys_readouterr().err
    assert status == 2, (case.name, status, line)
    assert line.startswith("ltpipe: error: ") and line.count("\n") == 1, line
    assert {path for path in place.rglob("*") if path.is_file()} == before, "something is left"
    return plain(line, place)


def plain(line: str, place: Path) -> str:
    line = line.removeprefix("ltpipe: error: ").strip()
    for path in (place.resolve(), place):
        line = line.replace(f"{path}/", "").replace(str(path), ".")
    line = re.sub(r"(now|end in) [0-9a-f]{10}", r"\1 ...", line)
    # Other versions of libraries say it in other words.
    for words in _LIBRARIES:
        line = re.sub(words, "...", line)
    return line


def row(number: int, case: Case, line: str) -> str:
    text = line.replace("|", "\\|").replace("`", "'")
    return f"| {number} | {case.name} | `{text}` |"


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LTPIPE_DATA", raising=False)
    monkeypatch.setenv("LTPIPE_DEVICE", "cpu")
    return tmp_path


@pytest.mark.parametrize("number", range(len(CASES)), ids=[case.name for case in CASES])
def test_one_line_and_nothing_left(number, place, capsys):
    case = CASES[number]
    line = said(case, place, capsys.readouterr)
    assert not (place / "harm").exists()
    expected = row(number + 1, case, line)
    rows = PAGE.read_text(encoding="utf-8").splitlines()
    assert expected in rows, f"docs/bad_input.md is out of date; it should have\n{expected}"


def test_the_page_has_these_rows_and_no_others():
    rows = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line[:3] == "| 1"]
    numbers = re.findall(r"^\| (\d+) \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert rows and numbers == [str(number) for number in range(1, len(CASES) + 1)]
    assert len(CASES) >= 40
    assert len({case.name for case in CASES}) == len(CASES)


def write_page() -> None:
    """Run every case and write docs/bad_input.md."""
    import contextlib
    import io
    import os
    import tempfile
    from types import SimpleNamespace

    os.environ.pop("LTPIPE_DATA", None)
    os.environ["LTPIPE_DEVICE"] = "cpu"
    rows = []
    for number, case in enumerate(CASES, 1):
        with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
            errors = io.StringIO()

            def read(errors: io.StringIO = errors) -> SimpleNamespace:
                text = errors.getvalue()
                errors.seek(0)
                errors.truncate()
                return SimpleNamespace(err=text)

            with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
                line = said(case, Path(folder), read)
        rows.append(row(number, case, line))
    PAGE.write_text(HEAD + "\n".join(rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(write_page())
