"""The pages: links lead somewhere, commands, settings and scripts run, tables come from files."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

from ltpipe.cli.program import main
from ltpipe.config.experiment import resolve
from ltpipe.plan.layout import build_plan

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
OTHERS = [ROOT / name for name in ("README.md", "config/README.md", "data/README.md")]
OTHERS += [ROOT / "data/results/README.md"]
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_REGION = re.compile(r"<!-- results: .*?<!-- end of results -->", re.DOTALL)


def each(pages):
    return pytest.mark.parametrize("page", pages, ids=lambda page: str(page.relative_to(ROOT)))


def tool(name):
    """Return a script of docs/ as a module."""
    spec = importlib.util.spec_from_file_location(f"docs_{name}", DOCS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up by name.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def anchors(page):
    """Return what headings of a page are linked by, as GitHub makes it."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in headings}


@each(PAGES + OTHERS)
def test_links_lead_somewhere(page):
    text = page.read_text()
    for link in re.findall(r"\]\(([^)]+)\)", text) + re.findall(r'src="([^"]+)"', text):
        if link.startswith("https://"):
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


def shell_lines(page):
    """Return the commands of a page's blocks, comments left out."""
    return [
        line.partition("  #")[0].strip()
        for language, text in _BLOCK.findall(page.read_text())
        if language == "sh"
        for line in text.splitlines()
    ]


@each(PAGES + OTHERS)
def test_experiments_that_commands_name_exist(page):
    lines = shell_lines(page)
    written = {
        words[words.index("--output") + 1]
        for words in map(str.split, lines)
        if words[:2] == ["ltpipe", "init"]
    }
    for line in lines:
        for name in re.findall(r"--(?:configfile|profile) (\S+)", line):
            assert name in written or (ROOT / name).exists(), line


@each([*PAGES, ROOT / "README.md"])
def test_commands_exist(page, capsys):
    makefile = (ROOT / "Makefile").read_text()
    for line in shell_lines(page):
        words = line.split()
        if words[0] == "make":
            assert f"\n{words[1]}:" in makefile, line
        if words[0] != "ltpipe":
            continue
        with pytest.raises(SystemExit) as stop:
            main([words[1], "--help"])
        shown = capsys.readouterr().out
        assert stop.value.code == 0, line
        for option in re.findall(r" (--[\w-]+)", line):
            assert option in shown, line


@each([page for page in PAGES if page.name not in ("tutorial.md", "extending.md", "cluster.md")])
def test_settings_load(page):
    """A block is an experiment, or a part of one about digits-LT."""
    for language, text in _BLOCK.findall(page.read_text()):
        if language != "yaml":
            continue
        part = yaml.safe_load(text)
        own = {"use": "backbone-head", "backbones": {"features": "resnet8-ce"}}
        whole = {"experiment": "part", "datasets": {"digits-lt": None}, "methods": {"CE": own}}
        plan = build_plan(resolve({**whole, **part}, ROOT / "config"))
        assert plan.of_kind("stage2")


@each([page for page in PAGES if page.name not in ("tutorial.md", "extending.md", "predict.md")])
def test_scripts_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for language, text in _BLOCK.findall(page.read_text()):
        if language == "python":
            exec(compile(text, str(page), "exec"), {})


def test_every_page_is_in_the_index():
    index = (DOCS / "README.md").read_text()
    assert {page.name for page in PAGES} - {"README.md"} <= set(re.findall(r"\((\w+\.md)\)", index))


@each([*PAGES, ROOT / "README.md"])
def test_no_result_is_typed_by_hand(page):
    """Means with deviations stand in data/results, and in regions that are filled from there."""
    assert not re.search(r"\d ± \d", _REGION.sub("", page.read_text()))


@each([*PAGES, ROOT / "README.md"])
def test_tables_are_those_of_the_files(page):
    assert tool("tables").filled(page) == page.read_text(), "run python docs/tables.py"


def test_tables_of_pages_follow_their_files(tmp_path, monkeypatch):
    tables = tool("tables")
    results = tmp_path / "data/results"
    results.mkdir(parents=True)
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    monkeypatch.setattr(tables, "RESULTS", results)
    table = "| method | accuracy |\n| --- | ---: |\n| CE | 80.0 |\n| FFN | 90.0 |\n"
    (results / "a.md").write_text(f"# A\n\nText.\n\n### One\n\n{table}\nTest set, 1 seed.\n")
    one, other = '"Xeon(R) Processor, AMX, 2 cores"', '"EPYC, no AMX, 2 cores"'
    (results / "b.csv").write_text(
        f"name,ratio,machine\nsteps,1234.4,{one}\nhops,0.5678,{one}\nhops,7,{other}\n"
    )
    (results / "e.csv").write_text(
        "name,ratio,extent,machine\n"
        + "".join(f"{row},{one}\n" for row in ("steps,2,default", "steps,9,quick"))
        + "".join(f"{row},{one}\n" for row in ("ceiling,,default", "steps,3,full"))
    )
    (results / "c.txt").write_text("said\n")
    page = tmp_path / "page.md"

    def fill(what):
        page.write_text(f"x\n<!-- results: {what} -->\nold\n<!-- end of results -->\ny\n")
        first, start, *inside, end, last = tables.filled(page).splitlines()
        assert start == f"<!-- results: {what} -->"
        assert (first, end, last) == ("x", "<!-- end of results -->", "y")
        return inside

    source = ["", "From [data/results/a.md](data/results/a.md)."]
    rows = table.splitlines()
    assert fill("a.md") == [*rows, "", "Test set, 1 seed.", *source]
    assert fill("a.md | One | rows: FFN") == [*rows[:2], rows[3], "", "Test set, 1 seed.", *source]
    assert fill("b.csv")[:4] == [
        "| what | Xeon, AMX | EPYC, no AMX |",
        "| --- | ---: | ---: |",
        "| steps | 1,234 |  |",
        "| hops | 0.568 | 7 |",
    ]
    # Of a history the newest row counts, quick runs and rows without a peer do not.
    assert fill("e.csv")[2:4] == ["| steps | 3 |", ""]
    assert fill("c.txt") == ["```text", "said", "```"]
    for what, message in (
        ("a.md | Two", "no table 'Two'; known: One"),
        ("a.md | rows: LDAM", "no row 'LDAM'; known: CE; FFN"),
        ("d.md", "d.md"),
    ):
        with pytest.raises(ValueError, match=message):
            fill(what)
    page.write_text("<!-- results: a.md -->\n")
    with pytest.raises(ValueError, match="has no end"):
        tables.filled(page)


def test_every_result_is_listed_with_its_command():
    index = (ROOT / "data/results/README.md").read_text()
    for path in (ROOT / "data/results").iterdir():
        assert path.name == "README.md" or f"`{path.name}`" in index, path.name


def test_the_picture_of_the_pipeline_is_what_its_script_draws():
    drawn = tool("pictures").pipeline()
    assert (DOCS / "images/pipeline.svg").read_text() == drawn
    for box in tool("pictures").BOXES:
        assert f">{box.title}</text>" in drawn


def test_the_picture_of_the_report_is_small_and_no_blank():
    path = DOCS / "images/report.png"
    assert path.stat().st_size < 200_000
    with Image.open(path) as image:
        assert image.width > 600 and len(image.convert("RGB").getcolors(1 << 20)) > 50


# Runs every job of an experiment as its rules do, one after another.
_RUN_ALL = """
from pathlib import Path
from ltpipe.cli.program import main
from ltpipe.plan.workload import load_workload

def make(artifact):
    for needed in artifact.inputs.values():
        if not Path(needed.folder, "manifest.json").exists():
            make(needed)
    inputs = [] if artifact.stage.is_page else [
        f"--input={role}={needed.folder}" for role, needed in artifact.inputs.items()
    ]
    arguments = [artifact.stage.command, "--spec", artifact.spec_text, *inputs]
    assert main([*arguments, "--output", artifact.folder]) == 0

for artifact in load_workload(Path("my/experiment.yaml")).everything.values():
    if not Path(artifact.folder, "manifest.json").exists():
        make(artifact)
"""


@pytest.mark.heavy
def test_plug_ins_of_the_page_run_outside_the_repository(tmp_path):
    shutil.copytree(ROOT / "config", tmp_path / "config")
    scripts, commands = [], []
    for language, text in _BLOCK.findall((DOCS / "extending.md").read_text()):
        first, _, rest = text.partition("\n")
        if language == "sh":
            commands += text.strip().splitlines()
        elif first == "# run":
            scripts.append(rest)
        else:
            target = tmp_path / first.removeprefix("# ")
            target.parent.mkdir(exist_ok=True)
            target.write_text(rest)
    rng = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 40), ("test", 20)):
        labels = np.arange(count) % 2
        pixels = rng.integers(0, 100, (count, 8, 8, 1)) + 120 * labels[:, None, None, None]
        arrays |= {f"{split}_images": pixels.astype(np.uint8), f"{split}_labels": labels}
    np.savez(tmp_path / "my/squares.npz", **arrays)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}

    def run(code):
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    said = [
        run(f"from ltpipe.cli.program import main; raise SystemExit(main({line.split()[1:]!r}))")
        for line in commands
    ]
    assert "generalized-ce" in said[0]
    assert "Run Prototypes on squares, seed 0" in said[1]
    loss = """
import torch
from ltpipe.config.losses import loss_settings
from ltpipe.config.plugins import load_plugins, locate_plugins
from ltpipe.losses.building import build_loss
load_plugins(locate_plugins(["my/generalized.py"], Path()))
logits, target = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0])
built = build_loss(loss_settings("generalized-ce", q=0.5), [3, 1])
p = logits.double().exp() / logits.double().exp().sum(1, keepdim=True)
wanted = sum((1 - float(p[n, 0]) ** 0.5) / 0.5 for n in range(2)) / 2
assert abs(float(built(logits, target)) - wanted) < 1e-6
"""
    (script,) = scripts
    run(script + loss)
    run(_RUN_ALL)
    (metrics,) = (tmp_path / "results/stage2").rglob("metrics.csv")
    rows = pd.read_csv(metrics)
    assert rows.loc[rows["metric"] == "accuracy", "value"].item() > 0.9
    for stage, plugin in (("stage1", "tiny"), ("stage1", "generalized"), ("stage2", "prototypes")):
        (manifest,) = (tmp_path / "results" / stage).rglob("manifest.json")
        assert f"my/{plugin}.py" in manifest.read_text()
    show = "from ltpipe.cli.program import main; main(['show', 'my/experiment.yaml'])"
    assert "\n  - " not in run(show)
    # Where plug-ins lie changes nothing; what one says, what it makes.
    (tmp_path / "my/own").mkdir()
    for path in (tmp_path / "my").glob("*.py"):
        path.rename(tmp_path / "my/own" / path.name)
    experiment = tmp_path / "my/experiment.yaml"
    values = yaml.safe_load(experiment.read_text())
    values["plugins"] = [f"own/{name}" for name in values["plugins"]]
    experiment.write_text(yaml.safe_dump(values))
    assert "\n  - " not in run(show)
    method = tmp_path / "my/own/prototypes.py"
    method.write_text(method.read_text().replace("units @", "2 * units @"))
    todo = [line.split("/")[1] for line in run(show).splitlines() if line.startswith("  - ")]
    assert todo == ["stage2", "experiments"]
