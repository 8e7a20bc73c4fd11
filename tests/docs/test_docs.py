"""The pages of docs/: links lead somewhere, settings exist, the worked example runs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)#]+)", page.read_text()):
        if not link.startswith("https://"):
            assert (page.parent / link).exists(), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_experiments_that_commands_name_exist(page):
    for name in re.findall(r"--configfile (\S+)", page.read_text()):
        assert (ROOT / name).is_file(), name


def test_every_page_is_in_the_index():
    index = (DOCS / "README.md").read_text()
    assert {page.name for page in PAGES} - {"README.md"} <= set(re.findall(r"\((\w+\.md)\)", index))


def test_no_result_is_typed_by_hand():
    """Means with deviations stand in data/results alone."""
    for page in PAGES:
        assert not re.search(r"\d ± \d", page.read_text()), page


def test_the_worked_example_runs(tmp_path):
    for part in ("ltpipe", "config"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / part, tmp_path / part, ignore=ignored)
    scripts, commands = [], []
    for language, text in _BLOCK.findall((DOCS / "extending.md").read_text()):
        first, _, rest = text.partition("\n")
        if language == "sh":
            commands += text.strip().splitlines()
        elif first == "# run":
            scripts.append(rest)
        elif first.startswith("# new: "):
            target = tmp_path / first.removeprefix("# new: ")
            assert not target.exists()
            target.write_text(rest)
        else:
            name, before = re.fullmatch(r"# in: (\S+), before: (.*)", first).groups()
            target = tmp_path / name
            assert target.read_text().count(f"\n{before}\n") == 1, before
            target.write_text(target.read_text().replace(f"\n{before}\n", f"\n{rest}{before}\n"))
    assert len(scripts) == 1 and len(commands) == 1
    loss = """
import torch
from ltpipe.config.losses import GeneralizedCrossEntropy
from ltpipe.losses.building import build_loss
logits, target = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0])
built = build_loss(GeneralizedCrossEntropy(name="generalized-ce", q=0.5), [3, 1])
p = logits.double().exp() / logits.double().exp().sum(1, keepdim=True)
wanted = sum((1 - float(p[n, 0]) ** 0.5) / 0.5 for n in range(2)) / 2
assert abs(float(built(logits, target)) - wanted) < 1e-6
"""
    show = f"import sys; from ltpipe.cli import main; sys.exit(main({commands[0].split()[1:]!r}))"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-c", "\n".join([*scripts, loss, show])],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "Run Prototypes on pets-lt, seed 0" in done.stdout
