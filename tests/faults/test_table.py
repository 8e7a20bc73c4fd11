"""docs/faults.md names tests that exist, and every test of a fault is in it."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NAMED = re.findall(r"`(tests/\S+\.py)::(\w+)`", (ROOT / "docs/faults.md").read_text())
# They test the means, which the page states above its table, rather than a fault.
MEANS = {"test_synced_before_it_gets_its_name", "test_what_the_system_refused"}


def named_in(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    found = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    return {name for name in found if name.startswith("test_")}


def test_every_row_has_a_test_that_exists():
    rows = [
        line for line in (ROOT / "docs/faults.md").read_text().splitlines() if "| `tests/" in line
    ]
    assert len(rows) >= 15
    assert len(NAMED) > len(rows)
    for path, name in NAMED:
        assert name in named_in(ROOT / path), f"{path}::{name}"


def test_every_test_of_a_fault_has_a_row():
    named = {name for _, name in NAMED}
    for path in set(Path(__file__).parent.glob("test_*.py")) - {Path(__file__)}:
        assert named_in(path) - MEANS <= named, named_in(path) - MEANS - named
