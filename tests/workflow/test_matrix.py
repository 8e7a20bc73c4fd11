"""What each kind of change reruns, for every family of rules: the exact set of jobs."""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from tests.workflow.workspace import PRELOADED, Workspace

# In one worker: what all of these tests start from takes longer to make than any of them.
pytestmark = [pytest.mark.workflow, pytest.mark.xdist_group("matrix")]

FILTER = {"clusters": 8, "epochs": 1, "batch_size": 64, "learning_rate": 0.05}
DATA = {"Draw the training subset of digits-lt"}
TRAIN_CE = {"Train ce on digits-lt, seed 0"}
EMBED_CE = {"Cache the features of ce on digits-lt, seed 0"}
EMBED_KPS = {"Cache the features of kps on digits-lt, seed 0"}
FILTERS = {"Train filter 1 on the features of ce on digits-lt, seed 0"}
CE = {"Run CE on digits-lt, seed 0"}
FFN = {"Run FFN on digits-lt, seed 0"}
DLSA = {"Run DLSA on digits-lt, seed 0"}
NCM = {"Run NCM on mine, seed 0"}
MINE = {"Draw the training subset of mine"}
IMPORT = {"Take over the embeddings net of mine"}
REPORT = {"Write the tables, figures and report of small"}

ON_KPS = FFN
ON_CE = CE | FFN | DLSA | FILTERS
OF_CE = TRAIN_CE | EMBED_CE | ON_CE
OF_KPS = {"Train kps on digits-lt, seed 0"} | EMBED_KPS | ON_KPS
STAGE2 = CE | FFN | DLSA | NCM
EVERYTHING = DATA | OF_CE | OF_KPS | MINE | IMPORT | NCM | REPORT


def whole() -> dict:
    """An experiment with a job of every family."""
    values = copy.deepcopy(PRELOADED)
    files = {split: f"{split}.npz" for split in ("train", "test")}
    values["datasets"]["mine"] = {"source": "features", "stores": {"net": files}}
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
        {"datasets": ["mine"], "methods": ["NCM"]},
    ]
    return values


@pytest.fixture(scope="module")
def made(finished: Workspace, tmp_path_factory) -> Workspace:
    """A workspace with the whole experiment run; whoever changes it changes it back."""
    base = tmp_path_factory.mktemp("matrix")
    workspace = Workspace(base / "source", base / "work")
    shutil.copytree(finished.source, workspace.source)
    shutil.copytree(finished.work, workspace.work)
    centres = np.random.default_rng(0).normal(size=(4, 6))
    for split, counts in (("train", [20, 10, 5, 3]), ("test", [4, 4, 4, 4])):
        labels = np.repeat(np.arange(4), counts)
        np.savez(workspace.work / f"{split}.npz", features=centres[labels], labels=labels)
    workspace.write(whole())
    workspace.snakemake()
    return workspace


@contextmanager
def added(workspace: Workspace, module: str, text: str = "UNUSED = 1") -> Iterator[None]:
    """Add a line to a module for a while."""
    path = workspace.source / "ltpipe" / module
    before = path.read_bytes()
    workspace.append(module, text)
    try:
        yield
    finally:
        path.write_bytes(before)


def planned(workspace: Workspace, values: dict) -> set[str]:
    workspace.write(values, "changed.yaml")
    return workspace.planned(config="changed.yaml")


CODE = [
    ("data/drawing.py", DATA | MINE),
    ("data/readers/digits.py", DATA | OF_CE | OF_KPS),
    ("stage1/supervised.py", OF_CE | OF_KPS),
    ("losses/margin.py", OF_KPS),
    ("features/extract.py", EMBED_CE | EMBED_KPS | ON_CE | ON_KPS),
    ("features/importing.py", IMPORT | NCM),
    ("stage2/flow_filter.py", FILTERS | DLSA),
    ("stage2/backbone_head.py", CE),
    ("stage2/ncm.py", NCM),
    ("evaluation/report.py", set()),
    # Shared helpers, and what nothing here uses.
    ("training/engine.py", OF_CE | OF_KPS),
    ("stage2/results.py", STAGE2),
    ("evaluation/metrics.py", STAGE2),
    ("stage2/m2m.py", DLSA),
    ("stage2/tau_norm.py", None),
    ("losses/smoothing.py", None),
    ("io.py", None),
]


@pytest.mark.parametrize(("module", "expected"), CODE)
def test_a_statement_reruns_what_imports_it(made: Workspace, module, expected):
    with added(made, module):
        jobs = made.planned()
    if expected is None:
        assert jobs == set()
    elif expected & (DATA | MINE):
        # Whatever is made from a subset follows it.
        assert jobs >= expected | REPORT
        assert jobs >= TRAIN_CE
        assert jobs.issuperset(MINE) == expected.issuperset(MINE)
    else:
        assert jobs == expected | REPORT


def test_remarks_rerun_nothing(made: Workspace):
    with added(made, "data/drawing.py", "# a remark"), added(made, "stage1/job.py", "# one"):
        with added(made, "features/extract.py", '"""Words."""'), added(made, "cli.py"):
            with added(made, "evaluation/report.py", "# one"):
                assert made.planned() == set()


def test_a_reverted_edit_reruns_nothing(made: Workspace):
    with added(made, "training/engine.py"):
        pass
    assert made.planned() == set()


def change_kps(values, **settings):
    values["backbones"]["kps"].update(settings)


def change_dlsa(values, **settings):
    values["methods"]["DLSA"].update(settings)


SETTINGS = {
    "data: seed of the draw": (
        lambda v: v["datasets"].update({"digits-lt": {"subset_seed": 1}}),
        DATA | OF_CE | OF_KPS | REPORT,
    ),
    "data: groups, which only evaluation uses": (
        lambda v: v["datasets"].update({"digits-lt": {"groups": "thresholds"}}),
        CE | FFN | DLSA | REPORT,
    ),
    "data: a label": (
        lambda v: v["datasets"].update({"digits-lt": {"label": "Digits"}}),
        REPORT,
    ),
    "stage1: epochs": (lambda v: change_kps(v, epochs=3), OF_KPS | REPORT),
    "stage1: momentum and weight decay swapped": (
        lambda v: change_kps(v, momentum=2e-4, weight_decay=0.9),
        OF_KPS | REPORT,
    ),
    "features: views": (
        lambda v: change_kps(v, features={"views": 3}),
        EMBED_KPS | ON_KPS | REPORT,
    ),
    "import: another store": (
        lambda v: v["datasets"]["mine"]["stores"]["net"].update(val="test.npz"),
        MINE | IMPORT | NCM | REPORT,
    ),
    "filter: a cluster more": (
        lambda v: change_dlsa(v, filter={**FILTER, "clusters": 9}),
        FILTERS | DLSA | REPORT,
    ),
    "stage2: rate": (lambda v: change_dlsa(v, learning_rate=0.3), DLSA | REPORT),
    "stage2: the other distance": (
        lambda v: v["methods"]["NCM"].update(distance="cosine"),
        NCM | REPORT,
    ),
    "report: a title": (lambda v: v.update(title="Another"), REPORT),
    "report: a figure less": (lambda v: v.update(figures=[]), REPORT),
    "order of keys": (
        lambda v: v.update(methods=dict(reversed(v["methods"].items()))),
        REPORT,
    ),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_setting_reruns_what_it_defines(made: Workspace, name):
    change, expected = SETTINGS[name]
    values = whole()
    change(values)
    assert planned(made, values) == expected


def test_order_of_keys_in_settings_reruns_nothing(made: Workspace):
    values = whole()
    for entries in (values["backbones"], values["methods"]):
        for name, settings in entries.items():
            entries[name] = dict(reversed(settings.items()))
    assert planned(made, values) == set()


def test_touching_everything_and_losing_all_records_reruns_nothing(made: Workspace):
    results = made.work / "results"
    for folder in (made.source, results):
        for path in sorted(folder.rglob("*"), reverse=True):
            if path.is_file():
                os.utime(path)
    assert made.planned() == set()
    records = made.work / ".snakemake"
    records.rename(made.work / "aside")
    try:
        assert made.planned() == set()
        with added(made, "stage2/ncm.py"):
            assert made.planned() == NCM | REPORT
    finally:
        shutil.rmtree(records, ignore_errors=True)
        (made.work / "aside").rename(records)


def test_a_file_of_embeddings_that_changed_is_taken_over_again(made: Workspace):
    path = made.work / "test.npz"
    before = path.read_bytes()
    with np.load(path) as file:
        np.savez(path, features=file["features"] + 1, labels=file["labels"])
    try:
        assert made.planned() == MINE | IMPORT | NCM | REPORT
    finally:
        path.write_bytes(before)


def test_each_family_can_be_forced_with_what_follows(made: Workspace):
    assert made.planned("--forcerun", "filter") == FILTERS | DLSA | REPORT
    assert made.planned("-F") == EVERYTHING
