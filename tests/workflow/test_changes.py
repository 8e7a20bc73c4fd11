"""The table of docs/artifacts.md: after each change Snakemake runs these jobs, and no others.

Most rows are dry runs on copies of one finished run. `python tests/workflow/test_changes.py` writes
the page's table anew.
"""

from __future__ import annotations

import ast
import copy
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from ltpipe.config.base import canonical_json
from ltpipe.config.registry import find, module_of
from ltpipe.plan.stages import STAGES
from tests.workflow.workspace import (
    EXPERIMENT,
    PUBLISH,
    REPORT,
    REPOSITORY,
    Workspace,
    copy_sources,
    titles,
    wait_for,
)

PAGE = REPOSITORY / "docs/artifacts.md"
FILTER = {"clusters": 8, "epochs": 1, "batch_size": 64, "learning_rate": 0.05}
OLD = 1e9
IN_2099 = 4.08e9


def jobs_on(dataset: str, *names: str) -> set[str]:
    """Return the titles of a backbone's training and features, or of methods."""
    whole = set()
    for name in names:
        if name.islower():
            whole |= {f"Train {name} on {dataset}, seed 0"}
            whole |= {f"Cache the features of {name} on {dataset}, seed 0"}
        else:
            whole |= {f"Run {name} on {dataset}, seed 0"}
    return whole


def only(jobs: set[str], start: str) -> set[str]:
    return {job for job in jobs if job.startswith(start)}


DRAW = {f"Draw the training subset of {name}" for name in ("digits-lt", "photos", "mine")}
FILTERS = {"Train filter 1 on the features of ce on digits-lt, seed 0"}
PACK = {"Pack the images of photos"}
PHOTOS = only(DRAW, "Draw the training subset of photos") | PACK | jobs_on("photos", "ce", "CE")
MINE = only(DRAW, "Draw the training subset of mine") | jobs_on("mine", "NCM")
MINE |= {"Import the embeddings net of mine"}
OF_KPS = jobs_on("digits-lt", "kps", "FFN")
DIGITS = OF_KPS | jobs_on("digits-lt", "ce", "CE", "DLSA") | FILTERS
DIGITS |= only(DRAW, "Draw the training subset of digits")
METHODS = only(DIGITS | PHOTOS | MINE, "Run")
TRAININGS = only(DIGITS | PHOTOS, "Train ") - FILTERS
ON_IMAGES = (DIGITS | PHOTOS) - DRAW - PACK
EVERYTHING = DIGITS | PHOTOS | MINE | REPORT
NOTHING: set[str] = set()

# How the page says which jobs run.
WORDS: dict[frozenset[str], str] = {
    frozenset(jobs): words
    for jobs, words in (
        (NOTHING, "nothing"),
        (REPORT, "the report"),
        (PHOTOS | REPORT, "all that is made from these photos; the report"),
        (MINE | REPORT, "all that is made from these embeddings; the report"),
        (jobs_on("digits-lt", "FFN") | REPORT, "the method; the report"),
        (jobs_on("digits-lt", "FFN"), "the method"),
        (jobs_on("mine", "NCM") | REPORT, "the method; the report"),
        (METHODS | REPORT, "the methods that use it; the report"),
        (METHODS, "that rule's jobs, and nothing that follows"),
        (ON_IMAGES | REPORT, "trainings and what is made from them; the report"),
        (OF_KPS | REPORT, "this training and what is made from it; the report"),
        (
            OF_KPS - {"Train kps on digits-lt, seed 0"} | REPORT,
            "its features and what is made from them; the report",
        ),
        (FILTERS | jobs_on("digits-lt", "DLSA") | REPORT, "the filters, the cascade; the report"),
        (DIGITS | REPORT, "all that is made from this data set; the report"),
        (
            only(METHODS, "Run") - MINE - jobs_on("photos", "CE") | REPORT,
            "the methods on this data set; the report",
        ),
        (EVERYTHING, "everything"),
        (
            jobs_on("photos", "wide", "Wide") | REPORT,
            "what starts from it and what follows; the report",
        ),
        (jobs_on("digits-lt", "FFN") | DRAW, "the method and the draws"),
        (
            jobs_on("digits-lt", "FFN") | DRAW | TRAININGS | REPORT,
            "the method; draws and trainings, which the report shows, and no features; the report",
        ),
    )
}


def experiment(**changes: Any) -> dict[str, Any]:
    """Return an experiment with a job of every family; `changes` replace top keys."""
    values = copy.deepcopy(EXPERIMENT)
    values["preload"] = True
    for backbone in values["backbones"].values():
        backbone |= {"epochs": 1, "features": {"views": 1}}
    files = {split: f"{split}.npz" for split in ("train", "test")}
    values["datasets"] |= {
        "photos": {"source": "folder", "path": "photos", "input": {"size": [8, 8], "channels": 3}},
        "mine": {"source": "features", "stores": {"net": files}, "class_names": "names.txt"},
    }
    values["methods"] |= {
        "DLSA": {
            "use": "dlsa-small",
            "backbones": {"features": "ce"},
            "filter": FILTER,
            "epochs": 1,
            "blocks": 1,
        },
        "NCM": {"kind": "ncm", "backbones": {"features": "net"}},
    }
    values["runs"] = [
        {"datasets": ["digits-lt"], "methods": ["CE", "FFN", "DLSA"]},
        {"datasets": ["photos"], "methods": ["CE"]},
        {"datasets": ["mine"], "methods": ["NCM"]},
    ]
    values["tables"]["main"] |= {
        "datasets": ["digits-lt"],
        "expected": {"paper": "ffn", "table": "T3"},
    }
    return {**values, **changes}


def write_data(folder: Path) -> None:
    """Write a folder of photos in three classes, and embeddings of four classes with names."""
    stream = np.random.default_rng(0)
    for split, counts in (("train", [12, 6, 3]), ("test", [4, 4, 4])):
        for name, count in zip("abc", counts, strict=True):
            (folder / "photos" / split / name).mkdir(parents=True)
            for number in range(count):
                write_photo(folder / "photos" / split / name / f"{number}.bmp", stream)
    centres = stream.normal(size=(4, 6))
    for split, counts in (("train", [20, 10, 5, 3]), ("test", [4, 4, 4, 4])):
        labels = np.repeat(np.arange(4), counts)
        np.savez(folder / f"{split}.npz", features=centres[labels], labels=labels)
    (folder / "names.txt").write_text("ant\nbee\ncat\ndog\n")
    (folder / "weights.pth").write_bytes(b"weights")


def write_photo(path: Path, stream: np.random.Generator) -> None:
    """Write a photo of noise; all take as many bytes."""
    Image.fromarray(stream.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)


# ---- the finished run --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A workspace with the whole experiment run; changes are undone by `place`."""
    base = tmp_path_factory.mktemp("changes")
    workspace = Workspace(base / "source", base / "work", base / "data")
    copy_sources(workspace.source)
    workspace.work.mkdir()
    write_data(base / "data")
    workspace.write(experiment())
    workspace.snakemake()
    # From now on what files hold is remembered, too.
    assert workspace.planned() == NOTHING
    return workspace


@pytest.fixture(scope="module")
def before(made: Workspace) -> dict[Path, tuple[bytes, int]]:
    """Contents and times of all that rows may change, results aside."""
    assert made.data is not None
    return {
        path: (path.read_bytes(), path.stat().st_mtime_ns)
        for folder in (made.source, made.data)
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


@pytest.fixture
def place(made: Workspace, before: dict[Path, tuple[bytes, int]]) -> Iterator[Workspace]:
    """The finished run; sources, data and the experiment are put back as they were."""
    yield made
    base = made.source.parent
    for folder in (base / "source", base / "data"):
        for path in list(folder.rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts and path not in before:
                path.unlink()
    for path, (content, time) in before.items():
        if not path.is_file() or path.read_bytes() != content or path.stat().st_mtime_ns != time:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            os.utime(path, ns=(time, time))
    made.data = base / "data"
    made.write(experiment())


@pytest.fixture
def results(place: Workspace, tmp_path: Path) -> Workspace:
    """A copy of the finished run, free to be changed: sources and data are put back after."""
    shutil.copytree(place.work, tmp_path / "work", symlinks=True)
    return Workspace(place.source, tmp_path / "work", place.data)


# ---- rows --------------------------------------------------------------------------------------

Change = Callable[[Workspace], Any]
Test = TypeVar("Test", bound=Callable[..., None])


@dataclass(frozen=True)
class Row:
    """A change, the jobs that follow from it, and the options of the dry run that shows them."""

    change: Change
    jobs: set[str]
    options: tuple[str, ...] = ()


# What changes, in words, and the row.
ROWS: dict[str, Row] = {}
# Rows with a test of their own: what happens, and in words what runs.
RUNS: dict[str, str] = {}


def row(what: str, jobs: set[str], *options: str) -> Callable[[Change], Change]:
    """Make a row of a function that changes a workspace."""

    def add(change: Change) -> Change:
        assert what not in ROWS
        ROWS[what] = Row(change, jobs, options)
        return change

    return add


def shown(what: str, runs: str) -> Callable[[Test], Test]:
    """Make a row of a test."""

    def add(test: Test) -> Test:
        RUNS[what] = runs
        return test

    return add


def photos(workspace: Workspace) -> Path:
    assert workspace.data is not None
    return workspace.data / "photos/train"


@row("nine photos added", PHOTOS | REPORT)
def _(workspace: Workspace) -> None:
    for number in range(100, 109):
        write_photo(photos(workspace) / f"c/{number}.bmp", np.random.default_rng(number))


@row("a photo removed", PHOTOS | REPORT)
def _(workspace: Workspace) -> None:
    (photos(workspace) / "a/3.bmp").unlink()


@row("a photo moved to another class", PHOTOS | REPORT)
def _(workspace: Workspace) -> None:
    (photos(workspace) / "a/3.bmp").rename(photos(workspace) / "b/33.bmp")


@row("a photo replaced by one of equal size", PHOTOS | REPORT)
def _(workspace: Workspace) -> None:
    path = photos(workspace) / "a/3.bmp"
    size = path.stat().st_size
    write_photo(path, np.random.default_rng(9))
    assert path.stat().st_size == size


@row("a photo replaced by one of equal size with an older time", PHOTOS | REPORT)
def _(workspace: Workspace) -> None:
    path = photos(workspace) / "a/3.bmp"
    write_photo(path, np.random.default_rng(9))
    os.utime(path, (OLD, OLD))


@row("a photo changed in place, its time and size kept", PHOTOS | REPORT)
def _(workspace: Workspace) -> None:
    path = photos(workspace) / "a/3.bmp"
    time = path.stat().st_mtime_ns
    write_photo(path, np.random.default_rng(9))
    os.utime(path, ns=(time, time))


@row("photos copied without times", NOTHING)
def _(workspace: Workspace) -> None:
    folder = photos(workspace)
    subprocess.run(["cp", "-r", str(folder), f"{folder}2"], check=True)
    shutil.rmtree(folder)
    Path(f"{folder}2").rename(folder)


@row("all photos touched", NOTHING)
def _(workspace: Workspace) -> None:
    for path in photos(workspace).rglob("*.bmp"):
        os.utime(path)


@row("the folder moved, its path in the experiment edited", NOTHING)
def _(workspace: Workspace) -> None:
    folder = photos(workspace).parent
    folder.rename(folder.parent / "moved")
    values = experiment()
    values["datasets"]["photos"]["path"] = "moved"
    workspace.write(values)


@row("the data root moved", NOTHING)
def _(workspace: Workspace) -> None:
    assert workspace.data is not None
    moved = workspace.data / "elsewhere"
    moved.mkdir()
    for path in list(workspace.data.iterdir()):
        if path != moved:
            path.rename(moved / path.name)
    workspace.data = moved


@row("a file of embeddings replaced, with an older time", MINE | REPORT)
def _(workspace: Workspace) -> None:
    assert workspace.data is not None
    path = workspace.data / "test.npz"
    with np.load(path) as file:
        np.savez(path, features=file["features"] + 1, labels=file["labels"])
    os.utime(path, (OLD, OLD))


@row("a file of class names edited", MINE | REPORT)
def _(workspace: Workspace) -> None:
    assert workspace.data is not None
    (workspace.data / "names.txt").write_text("ant\nbee\ncow\ndog\n")


def pretend(workspace: Workspace) -> None:
    """Let all that is planned be there; dry runs look no further."""
    for line in workspace.snakemake("--summary").stdout.splitlines()[1:]:
        path = workspace.work / line.split("\t")[0]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


@row("a file of weights", jobs_on("photos", "wide", "Wide") | REPORT)
def _(workspace: Workspace) -> None:
    assert workspace.data is not None
    weights = workspace.data / "weights.pth"
    values = experiment()
    network = {"network": "resnet50", "loss": {"name": "ce"}, "weights": str(weights)}
    values["backbones"]["wide"] = network
    values["methods"]["Wide"] = {**values["methods"]["CE"], "backbones": {"features": "wide"}}
    values["runs"][1]["methods"].append("Wide")
    workspace.write(values)
    pretend(workspace)
    assert workspace.planned() == NOTHING
    weights.write_bytes(b"Weights")
    os.utime(weights, (OLD, OLD))


# ---- settings ----------------------------------------------------------------------------------


def setting(what: str, jobs: set[str]) -> Callable[[Callable[[dict[str, Any]], Any]], Any]:
    """Make a row of a function that changes the experiment."""

    def add(change: Callable[[dict[str, Any]], Any]) -> Any:
        def write(workspace: Workspace) -> None:
            values = experiment()
            workspace.write(change(values) or values)

        return row(what, jobs)(write)

    return add


@setting("a method's learning rate", jobs_on("digits-lt", "FFN") | REPORT)
def _(values: dict[str, Any]) -> None:
    values["methods"]["FFN"]["learning_rate"] = 0.1


@setting("two values swapped, momentum and weight decay", OF_KPS | REPORT)
def _(values: dict[str, Any]) -> None:
    values["backbones"]["kps"] |= {"momentum": 5e-4, "weight_decay": 0.9}


@setting("the seed of a draw", DIGITS | REPORT)
def _(values: dict[str, Any]) -> None:
    values["datasets"]["digits-lt"] = {"subset_seed": 1}


@setting(
    "what counts as few-shot, which only evaluation uses",
    METHODS - MINE - jobs_on("photos", "CE") | REPORT,
)
def _(values: dict[str, Any]) -> None:
    values["datasets"]["digits-lt"] = {"groups": "thresholds"}


@setting(
    "how many views of a backbone's features are cached",
    OF_KPS - {"Train kps on digits-lt, seed 0"} | REPORT,
)
def _(values: dict[str, Any]) -> None:
    values["backbones"]["kps"]["features"] = {"views": 3}


@setting("a setting of a cascade's filters", FILTERS | jobs_on("digits-lt", "DLSA") | REPORT)
def _(values: dict[str, Any]) -> None:
    values["methods"]["DLSA"]["filter"] = {**FILTER, "clusters": 9}


@setting("a label, a title, a figure", REPORT)
def _(values: dict[str, Any]) -> None:
    values |= {"title": "Another", "figures": []}
    values["datasets"]["digits-lt"] = {"label": "Digits"}


@setting("another name for the same method", REPORT)
def _(values: dict[str, Any]) -> None:
    values["methods"]["Fusion"] = values["methods"].pop("FFN")
    values["runs"][0]["methods"][1] = "Fusion"
    values["tables"]["main"]["rows"][1]["method"] = "Fusion"


@setting("a default written out; comments, order of keys", NOTHING)
def _(values: dict[str, Any]) -> Any:
    values["methods"]["FFN"] |= {"initial": "kps", "batch_size": 64}
    for entries in (values["backbones"], values["methods"]):
        for name, settings in entries.items():
            entries[name] = dict(reversed(settings.items()))
    return dict(reversed(values.items()))


# ---- code --------------------------------------------------------------------------------------


def statement(what: str, jobs: set[str], module: Callable[[], str]) -> None:
    """Make a row of a statement added to a module."""
    row(what, jobs)(lambda workspace: workspace.append(module()))


statement(
    "a method's code",
    jobs_on("digits-lt", "FFN") | REPORT,
    lambda: module_of("method", "ffn"),
)
statement("code that draws subsets", EVERYTHING, lambda: str(STAGES["data"].module))
statement("code of a loss", OF_KPS | REPORT, lambda: module_of("loss", "kps"))
statement(
    "code of a method that nothing here uses",
    NOTHING,
    lambda: module_of("method", "tau-norm"),
)
statement(
    "a helper deep below every training", ON_IMAGES | REPORT, lambda: "ltpipe.training.schedules"
)
statement("a helper deep below every method", METHODS | REPORT, lambda: "ltpipe.evaluation.metrics")


@row("a statement in the settings of a method", jobs_on("digits-lt", "FFN") | REPORT)
def _(workspace: Workspace) -> None:
    path = workspace.module(find("method", "ffn").module)
    kind = '    kind: Literal["ffn"]\n'
    workspace.edit(path, kind, f"{kind}    _unused = 1\n")


@row("a template of the report", REPORT)
def _(workspace: Workspace) -> None:
    path = workspace.source / "ltpipe/evaluation/templates/report.html.jinja"
    path.write_text(path.read_text() + "\n")


@row("`page.js`", REPORT)
def _(workspace: Workspace) -> None:
    path = workspace.source / "ltpipe/evaluation/templates/page.js"
    path.write_text(path.read_text() + "\n;\n")


@row("a number in `data/expected` that a table shows", REPORT)
def _(workspace: Workspace) -> None:
    workspace.edit(workspace.source / "data/expected/ffn.csv", "79.47", "79.48")


def sources(workspace: Workspace) -> list[Path]:
    return sorted((workspace.source / "ltpipe").rglob("*.py"))


@row("comments in all modules", NOTHING)
def _(workspace: Workspace) -> None:
    for path in sources(workspace):
        path.write_text(path.read_text() + "\n# a remark\n")


@row("docstrings of all modules", NOTHING)
def _(workspace: Workspace) -> None:
    for path in sources(workspace):
        tree = ast.parse(path.read_text())
        if ast.get_docstring(tree) is not None:
            path.write_text(path.read_text().replace('"""', '"""Words. ', 1))


@row("all modules reformatted", NOTHING)
def _(workspace: Workspace) -> None:
    for path in sources(workspace):
        tree = ast.unparse(ast.parse(path.read_text()))
        # The registry reads decorators from the source as ruff leaves it.
        if "\n@" not in path.read_text():
            path.write_text(tree + "\n")


@row("a module moved", NOTHING)
def _(workspace: Workspace) -> None:
    old = "ltpipe.training.schedules"
    workspace.module(old).rename(workspace.module("ltpipe.utils.rates"))
    for path in sources(workspace):
        path.write_text(path.read_text().replace(old, "ltpipe.utils.rates"))


# ---- rules and records -------------------------------------------------------------------------


def shell_line(workspace: Workspace) -> None:
    workspace.edit(workspace.source / "workflow/rules/stages.smk", " --threads", "  --threads")


def parameter(workspace: Workspace) -> None:
    path = workspace.source / "workflow/rules/stages.smk"
    workspace.edit(
        path,
        "            command=stage.command,\n",
        "            command=stage.command,\n            more=1,\n",
    )


def environment_file(workspace: Workspace) -> None:
    path = workspace.source / "environment.yml"
    path.write_text(path.read_text() + "\n# another\n")


row("a shell line of a rule", NOTHING)(shell_line)
row("a parameter of a rule", NOTHING)(parameter)
row("the environment file", NOTHING)(environment_file)


@row("these three with `.snakemake` lost", NOTHING)
def _(workspace: Workspace) -> None:
    for change in (shell_line, parameter, environment_file):
        change(workspace)
    shutil.rmtree(workspace.work / ".snakemake")


@row("`.snakemake` lost", NOTHING)
def _(workspace: Workspace) -> None:
    shutil.rmtree(workspace.work / ".snakemake")


@row(
    "`.snakemake` lost, and a method's code changed",
    jobs_on("digits-lt", "FFN") | REPORT,
)
def _(workspace: Workspace) -> None:
    shutil.rmtree(workspace.work / ".snakemake")
    workspace.append(module_of("method", "ffn"))


def set_times(workspace: Workspace, time: Callable[[int], float]) -> None:
    files = [path for path in (workspace.work / "results").rglob("*") if path.is_file()]
    for number, path in enumerate(sorted(files)):
        os.utime(path, (time(number), time(number)))


@row("results copied with shuffled times", NOTHING)
def _(workspace: Workspace) -> None:
    shutil.rmtree(workspace.work / ".snakemake")
    order = np.random.default_rng(0).permutation(10_000)
    set_times(workspace, lambda number: 1.7e9 + float(order[number]))


@row("results copied with times in 2099", NOTHING)
def _(workspace: Workspace) -> None:
    shutil.rmtree(workspace.work / ".snakemake")
    set_times(workspace, lambda number: IN_2099 - number)


def delete(workspace: Workspace, *stages: str) -> None:
    for stage in stages:
        shutil.rmtree(workspace.work / "results" / stage)


@row("draws, trainings and features deleted", NOTHING)
def _(workspace: Workspace) -> None:
    delete(workspace, "data", "stage1", "features", "filters")


def another_rate(workspace: Workspace) -> None:
    values = experiment()
    values["methods"]["FFN"]["learning_rate"] = 0.1
    workspace.write(values)


@row(
    "draws and trainings deleted, a method's setting changed, `snakemake stage2`",
    jobs_on("digits-lt", "FFN") | DRAW,
    "stage2",
)
def _(workspace: Workspace) -> None:
    delete(workspace, "data", "stage1")
    another_rate(workspace)


@row(
    "the same, and the report asked for",
    jobs_on("digits-lt", "FFN") | DRAW | TRAININGS | REPORT,
)
def _(workspace: Workspace) -> None:
    delete(workspace, "data", "stage1")
    another_rate(workspace)


@row("a manifest deleted", jobs_on("digits-lt", "FFN"), "stage2")
def _(workspace: Workspace) -> None:
    (path,) = (workspace.work / "results/stage2/digits-lt/ffn").rglob("manifest.json")
    path.unlink()


def unchanged(workspace: Workspace) -> None:
    """Options alone make the difference."""


row("`-R classify`", METHODS, "-R", "classify")(unchanged)
row("`--forcerun classify`", METHODS, "--forcerun", "classify")(unchanged)
row("`-F`", EVERYTHING, "-F")(unchanged)


@row(
    "a method's setting changed, `--until classify`",
    jobs_on("digits-lt", "FFN"),
    "--until",
    "classify",
)
def _(workspace: Workspace) -> None:
    another_rate(workspace)


@row("`--touch`, then a run", NOTHING)
def _(workspace: Workspace) -> None:
    workspace.snakemake("--touch")


# In one worker: what all of these tests start from takes longer to make than any of them.
pytestmark = [pytest.mark.workflow, pytest.mark.xdist_group("changes")]


@pytest.mark.parametrize("what", ROWS)
def test_these_jobs_follow_and_no_others(results: Workspace, what: str):
    row = ROWS[what]
    row.change(results)
    assert results.planned(*row.options) == row.jobs


# ---- runs --------------------------------------------------------------------------------------


@shown("a setting changed, then changed back", "nothing; the old report is the latest again")
def test_what_was_made_before_is_found_again(results: Workspace):
    values = experiment()
    values["methods"]["FFN"]["w1"] = [0.0, 0.25]
    latest = results.work / "results/experiments/small/latest"
    first = latest.resolve()
    values["tables"]["main"]["rows"].pop()
    results.write(values)
    assert titles(results.snakemake()) == jobs_on("digits-lt", "FFN") | REPORT
    assert latest.resolve() != first
    results.write(experiment())
    assert titles(results.snakemake()) == {PUBLISH}
    assert latest.resolve() == first
    assert results.planned() == NOTHING


@shown("the data root gone, a method's setting changed", "the method; the report")
def test_data_need_not_be_there(results: Workspace):
    assert results.data is not None
    results.data = results.data.with_name("nowhere")
    assert results.planned() == NOTHING
    values = experiment()
    values["methods"]["NCM"]["distance"] = "cosine"
    results.write(values)
    done = results.snakemake()
    assert titles(done) == jobs_on("mine", "NCM") | REPORT
    assert "taken as last seen" in done.stderr


def on_a_cluster(
    workspace: Workspace, target: str, before: str
) -> subprocess.CompletedProcess[str]:
    """Run what `target` asks for, `before` happening once its jobs are in the queue."""
    plugins = Path(__file__).parent / "plugins"
    return workspace.snakemake(
        *(target, "--executor", "beside", "--jobs", "2", "--latency-wait", "1"),
        *("--seconds-between-status-checks", "1"),
        check=False,
        PYTHONPATH=f"{workspace.source}:{plugins}",
        BEFORE_JOBS=before,
    )


@shown("data hidden from the node while jobs queue", "what opens no data, by the plan of the run")
def test_jobs_keep_to_the_plan_where_data_are_hidden(results: Workspace):
    assert results.data is not None
    delete(results, "data/photos")
    values = experiment()
    values["methods"]["NCM"]["distance"] = "cosine"
    results.write(values)
    (draw,) = only(PHOTOS, "Draw")
    assert results.planned("stage2") == jobs_on("mine", "NCM") | {draw}
    hidden = results.data.with_name("hidden")
    before = f"[ ! -d {results.data} ] || mv {results.data} {hidden}"
    done = on_a_cluster(results, "stage2", before)
    hidden.rename(results.data)
    # The draw opens the photos, and says so; the method found what it was planned with.
    assert done.returncode != 0
    (log,) = (results.work / "results/logs/data/photos").glob("*.log")
    assert "photos does not exist" in log.read_text()
    assert results.planned("stage2") == {draw}


@shown("data changed while jobs queue", "nothing; the job that reads them is refused")
@pytest.mark.parametrize(
    ("stage", "change", "message"),
    [
        ("data", "cp b/2.bmp c/200.bmp", "c/200.bmp: was not there when this run was planned"),
        ("images", "cp b/2.bmp a/3.bmp", "a/3.bmp: changed since this run was planned"),
    ],
)
def test_data_that_changed_while_jobs_queue_are_refused(
    results: Workspace, stage: str, change: str, message: str
):
    delete(results, f"{stage}/photos", "stage1/photos")
    done = on_a_cluster(results, "stage1", f"cd {photos(results)}; {change}; cd {results.work}")
    assert done.returncode != 0
    (log,) = (results.work / f"results/logs/{stage}/photos").rglob("*.log")
    said = log.read_text()
    assert message in said and "plan again" in said and "Traceback" not in said
    assert not list((results.work / f"results/{stage}/photos").rglob("manifest.json"))
    assert results.planned() == PHOTOS | REPORT


@shown("a training that ended well, its Snakemake being killed", "nothing; it is taken")
def test_a_training_whose_snakemake_was_killed_ends_and_one_that_ended_well_is_taken(
    results: Workspace,
):
    folder = results.work / "results"
    results.write(experiment(preload=False))
    delete(results, "stage1/digits-lt/resnet8-kps", "logs/stage1")
    process = results.started("stage1")
    wait_for(lambda: any((folder / "logs/stage1").rglob("*.log")), process)
    process.kill()
    process.communicate()
    # Its job ends with it; one on another machine of a cluster would go on, as this one does.
    (plan,) = sorted((folder / "plans").glob("*.json"), key=lambda p: p.stat().st_mtime_ns)[-1:]
    rows = json.loads(plan.read_text())["artifacts"]
    (row,) = [row for row in rows if row["folder"].startswith("results/stage1/digits-lt/resnet8-k")]
    assert not (results.work / row["folder"] / "manifest.json").exists()
    command = [sys.executable, "-m", "ltpipe", "train", "--spec", canonical_json(row["spec"])]
    command += [f"--input={role}={needed}" for role, needed in row["inputs"].items()]
    command += ["--output", row["folder"]]
    subprocess.run(command, cwd=results.work, env=results.environment(), check=True)
    # Snakemake's own mark says that it is incomplete.
    assert any((results.work / ".snakemake/incomplete").iterdir())
    assert results.planned("stage1") == NOTHING
    results.snakemake("--unlock")
    assert "Nothing to be done" in results.snakemake().stderr


# ---- the page ----------------------------------------------------------------------------------


def table() -> str:
    """Return the page's table."""
    lines = [f"| {what} | {WORDS[frozenset(row.jobs)]} |" for what, row in ROWS.items()]
    lines += [f"| {what} | {runs} |" for what, runs in RUNS.items()]
    return "\n".join(["| what changes | what runs |", "| --- | --- |", *lines])


def table_of_the_page() -> re.Match[str] | None:
    return re.search(r"^\| what changes \|.*\n(?:\|.*\n)+", PAGE.read_text(), re.MULTILINE)


def test_the_page_has_these_rows_and_no_others():
    found = table_of_the_page()
    assert found is not None
    assert found[0].strip() == table()


if __name__ == "__main__":
    place_of_table = table_of_the_page()
    assert place_of_table is not None
    PAGE.write_text(PAGE.read_text().replace(place_of_table[0], table() + "\n"))
