"""A code identity counts what can change a result, by contents, on every Python alike."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ltpipe.config.registry import registered
from ltpipe.plan import code
from ltpipe.plan.code import NOT_PART_OF_RESULTS, code_identity, code_modules
from ltpipe.plan.entries import code_entries
from ltpipe.plan.syntax import canonical_tree
from ltpipe.utils.errors import InputError

REPOSITORY = Path(__file__).resolve().parents[2]
SYNTAX = Path(__file__).parent / "data/every_syntax.txt"
GOLDEN = "971d94e329d4a5aca9010ac074094a50f4c6f1d402910d7f388429f856e1ba6b"
METHODS = sorted(registered("method"))


def entries_of(kind):
    return code_entries({"kind": "stage2", "method": {"kind": kind}})


def digest(text):
    return canonical_tree(text.encode(), "text").digest


# ---- the canonical tree ----------------------------------------------------------------------


def test_the_fixture_uses_every_kind_of_syntax():
    used = {type(node) for node in ast.walk(ast.parse(SYNTAX.read_bytes()))}
    groups = (ast.stmt, ast.expr, ast.operator, ast.unaryop, ast.boolop, ast.cmpop, ast.pattern)
    newer = {"TypeAlias", "TemplateStr", "Interpolation"}
    kinds = {kind for group in groups for kind in group.__subclasses__()} - {
        getattr(ast, name) for name in newer if hasattr(ast, name)
    }
    # Slices of extended subscripts and typed constants are names of Python 3.8 and before.
    current = {kind for kind in kinds if kind.__module__ == "ast" and kind in vars(ast).values()}
    old = {"Num", "Str", "Bytes", "NameConstant", "Ellipsis", "Index", "ExtSlice"}
    assert {k.__name__ for k in current - used} <= old


def test_the_canonical_tree_has_a_digest_of_its_own_forever():
    assert canonical_tree(SYNTAX.read_bytes(), "every_syntax").digest == GOLDEN


def pythons():
    """Other interpreters on this machine that the package supports."""
    found = {}
    for minor in (11, 12, 13):
        roots = sorted(Path.home().glob(f".pyenv/versions/3.{minor}.*/bin/python"))
        for path in (shutil.which(f"python3.{minor}"), *map(str, roots)):
            if path is not None and subprocess.run([path, "-c", ""], capture_output=True):
                found[f"3.{minor}"] = path
    return found


@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13"])
def test_other_pythons_agree(version):
    python = pythons().get(version)
    if python is None:
        pytest.skip(f"Python {version} is not on this machine")
    program = (
        "import sys; from ltpipe.plan.code import code_identity;"
        "from ltpipe.plan.syntax import canonical_tree;"
        "print(sys.version_info[:2], canonical_tree(open(sys.argv[1], 'rb').read(), 'x').digest,"
        "*[code_identity([name]) for name in sys.argv[2:]])"
    )
    modules = ["ltpipe.stage2.ffn.job", "ltpipe.stage1.supervised", "ltpipe.evaluation.report"]
    done = subprocess.run(
        [python, "-B", "-c", program, str(SYNTAX), *modules],
        env={"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=True,
    )
    minor = version.partition(".")[2]
    wanted = [GOLDEN, *[code_identity([name]) for name in modules]]
    assert done.stdout.strip() == f"(3, {minor}) " + " ".join(wanted)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("x = a - b", "x = (a -  # less\n     b)"),
        ("def f():\n    return 1", "def f():\n  '''What it is.'''\n\n  return 1"),
        ("def f():\n    pass", "def f():\n    'What it is.'"),
        ("class A:\n    x = 1\n    'what x is'", "class A:\n    x = 1"),
        ("x = 'a' 'b'", 'x = "ab"'),
        ("x = 255", "x = 0xFF"),
        ("f(a, b)", "f(\n    a,\n    b,\n)"),
        ("x = [1, 2]", "x = [1, 2,]"),
        ("from a import b, c", "from a import (b,)\nfrom a import c"),
        ("x = f'{a:}'", "x = f'{a}'"),
        ("x = 1  # type: int", "x = 1"),
        ("x = 1; y = 2", "x = 1\ny = 2\n"),
        ("if TYPE_CHECKING:\n    import a\nx = 1", "x = 1"),
        ("x = 1\r\n", "\ufeffx = 1\n"),
    ],
)
def test_what_only_reads_otherwise_is_equal(one, other):
    assert digest(one) == digest(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("x = a\n-b", "x = a-b"),
        ("def f():\n    'text'; return 1", "def f():\n    'text'; return 2"),
        ("def f():\n    'text'; x = 1", "def f():\n    'text'"),
        ("x = 1", "x = 1.0"),
        ("x = 1", "x = True"),
        ("x = 0", "x = False"),
        ("x = 'a'", "x = b'a'"),
        ("x = '1'", "x = 1"),
        ("x = None", "x = 'None'"),
        ("x = ('a', 'b')", "x = ('a,', 'b')"),
        ("x = 'a', 'b'", "x = 'a' 'b'"),
        ("x = {**a, b: 1}", "x = {b: 1, **a}"),
        ("def f(*, a=1, b): ...", "def f(*, a, b=1): ..."),
        ("def f(a, /, b): ...", "def f(a, b): ..."),
        ("if a:\n    b\nc", "if a:\n    b\n    c"),
        ("if a:\n    b\nelse:\n    c", "if a:\n    b\n    c"),
        ("for x in a:\n    b\nelse:\n    c", "for x in a:\n    b\nc"),
        ("x: int = 1", "x: float = 1"),
        ("x = f'{a!r}'", "x = f'{a!s}'"),
        ("x = f'{a:1}'", "x = f'{a}1'"),
        ("x = f'{a}{b}'", "x = f'{a}b'"),
        ("import a", "import a as b"),
        ("from a import b", "from a import b as c"),
        ("if TYPE_CHECKING:\n    x = 1\nelse:\n    x = 2", "x = 1"),
        ("async def f():\n    async for x in y: z", "async def f():\n    for x in y: z"),
        ("x[1:2]", "x[1:2:3]"),
        ("a < b < c", "(a < b) < c"),
        ("a and b and c", "a and (b and c)"),
        ("try:\n    a\nexcept b:\n    c", "try:\n    a\nexcept* b:\n    c"),
    ],
)
def test_what_runs_otherwise_differs(one, other):
    assert digest(one) != digest(other)


def test_what_is_no_python_is_one_line():
    for text in ("x = (", "x = 1\0", b"\xff", "(" * 5000, "- " * 100_000 + "1"):
        with pytest.raises(InputError, match=r"thing\.py") as caught:
            canonical_tree(text, "thing.py")
        assert "\n" not in str(caught.value)


# ---- the package -----------------------------------------------------------------------------


class Copy:
    """A copy of the package that can be edited, and the identities of its code."""

    def __init__(self, base):
        self.folder = base / "ltpipe"
        skipped = shutil.ignore_patterns("__pycache__")
        shutil.copytree(REPOSITORY / "ltpipe", self.folder, ignore=skipped)
        spec = importlib.util.spec_from_file_location("copied", self.folder / "plan/code.py")
        self.code = importlib.util.module_from_spec(spec)
        sys.modules["copied"] = self.code
        spec.loader.exec_module(self.code)

    def replace(self, name, old, new):
        path = self.folder / name
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))

    def identities(self):
        return {kind: self.code.code_identity(entries_of(kind)) for kind in METHODS}


@pytest.fixture
def copy(tmp_path):
    yield Copy(tmp_path)
    del sys.modules["copied"]


LOOP = "    momenta: Parameters = {}\n"
NEW = "ONE = 1\n\n\n"


@pytest.mark.parametrize(
    ("module", "old", "new", "counts"),
    [
        ("stage2/core/fit.py", LOOP, LOOP.replace("\n", "  # a remark\n"), False),
        ("stage2/core/fit.py", LOOP, "\n\n" + LOOP, False),
        ("stage2/core/fit.py", '"""The one fit loop', '"""Other words. The one fit loop', False),
        ("stage2/core/fit.py", LOOP, LOOP.replace("{}", "{**{}}"), True),
        ("stage2/core/fit.py", LOOP, "    if True:\n    " + LOOP, True),
        ("losses/margin.py", "def _check_positive", NEW + "def _check_positive", True),
        ("losses/weights.py", "def _sum_to", NEW + "def _sum_to", False),
        ("cli/program.py", "def main(", NEW + "def main(", False),
        ("stage2/ffn/settings.py", "class CeAndKps(", NEW + "class CeAndKps(", True),
        ("stage2/dlsa/settings.py", '@method("dlsa"', NEW + '@method("dlsa"', False),
        ("config/base.py", "def digest(", NEW + "def digest(", True),
    ],
)
def test_what_counts_as_a_change_of_ffn(copy, module, old, new, counts):
    before = copy.identities()["ffn"]
    copy.replace(module, old, new)
    assert (copy.identities()["ffn"] != before) == counts


def test_what_the_settings_of_a_backbone_compute_counts(copy):
    """A training reads more of its settings than their fields."""
    backbone = {"system": "hrjba-branch", "group": "head", "network": "resnet8"}
    spec = {"kind": "stage1", "dataset": {"source": "digits"}, "backbone": backbone}
    entries = code_entries(spec)
    before = copy.code.code_identity(entries)
    weight = "else 1 - self.head_weight"
    copy.replace("config/backbones/hrjba.py", weight, "else self.head_weight")
    assert copy.code.code_identity(entries) != before


def move(copy, old, new):
    """Move a module, and change the imports of it as a person would."""
    (copy.folder / new).parent.mkdir(exist_ok=True)
    (copy.folder / old).rename(copy.folder / new)
    was, now = (".".join(("ltpipe", *Path(name).with_suffix("").parts)) for name in (old, new))
    for path in copy.folder.rglob("*.py"):
        path.write_text(path.read_text().replace(f"from {was} import", f"from {now} import"))


def test_moving_a_module_changes_no_identity(copy):
    before = copy.identities()
    move(copy, "stage2/core/fit.py", "training/fitting.py")
    move(copy, "config/base.py", "config/deep/ground.py")
    assert copy.identities() == before
    # What they were is still part of it.
    copy.replace("training/fitting.py", LOOP, LOOP.replace("{}", "{**{}}"))
    assert copy.identities()["ffn"] != before["ffn"]


@pytest.mark.heavy
def test_every_module_that_methods_import_counts_or_is_excluded():
    """By what Python really imports: nothing that a job runs is overlooked."""
    entries = [name for kind in METHODS for name in entries_of(kind)]
    program = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]: importlib.import_module(name)\n"
        "print(*[n for n in sys.modules if n.partition('.')[0] == 'ltpipe'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *entries],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=True,
    )
    aside = set(done.stdout.split()) - set(code_modules(entries))
    # Packages that only pass names on, as below.
    packages = {name for name in aside if (REPOSITORY / Path(*name.split("."))).is_dir()}
    reached = {name for name in aside - packages if name not in NOT_PART_OF_RESULTS}
    # Imported by packages on the way, or by what is excluded, and asked for nothing.
    assert {
        name for name in reached if not name.startswith(("ltpipe.config.", "ltpipe.plan."))
    } == (set())


def test_a_backbones_code_has_its_own_loss_network_and_reader_alone():
    digits = {"source": "digits"}
    backbone = {"network": "resnet8", "loss": {"name": "ce"}}
    spec = {"kind": "stage1", "dataset": digits, "backbone": backbone}
    ce = set(code_modules(code_entries(spec)))
    kps = {**backbone, "head": "cosine", "loss": {"name": "kps"}}
    other = set(code_modules(code_entries({**spec, "backbone": kps})))
    assert (ce - other, other - ce) == ({"ltpipe.losses.softmax"}, {"ltpipe.losses.margin"})
    readers = {name for name in ce if name.startswith("ltpipe.data.readers.")}
    assert readers == {"ltpipe.data.readers.digits"}
    assert not any(name.startswith(("ltpipe.stage2.", "ltpipe.evaluation.")) for name in ce)


@pytest.mark.parametrize("kind", ["data", "images"])
def test_what_is_drawn_or_decoded_knows_nothing_of_augmentation(kind):
    """An edit there would draw every subset again, and decode every image."""
    reached = set(code_modules(code_entries({"kind": kind, "dataset": {"source": "folder"}})))
    assert "ltpipe.data.readers.folder" in reached
    assert not reached & {f"ltpipe.data.{name}" for name in ("augment", "batches", "randaugment")}


def test_packages_only_pass_names_on():
    """A package's own statements run at every import below it, and do not count then."""
    allowed = (ast.Import, ast.ImportFrom, ast.Assign, ast.AnnAssign, ast.FunctionDef, ast.Expr)
    for path in (REPOSITORY / "ltpipe").rglob("__init__.py"):
        for node in ast.parse(path.read_text()).body:
            assert isinstance(node, allowed), f"{path}:{node.lineno}"
            if isinstance(node, ast.Expr):
                assert isinstance(node.value, ast.Constant), f"{path}:{node.lineno}"


# ---- small packages and plug-ins -------------------------------------------------------------


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A function that writes files below a folder; files of `ltpipe/` make the package."""
    package = tmp_path / "ltpipe"
    monkeypatch.setattr(code, "PACKAGE", package)

    def write(**files):
        for name, text in files.items():
            path = tmp_path / (name.replace("__init__", "%").replace("__", "/") + ".py")
            path = path.with_name(path.name.replace("%", "__init__"))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            os.utime(path, ns=(0, hash(text) % 10**15))
        return tmp_path

    (package).mkdir()
    (package / "__init__.py").write_text("")
    return write


def changes(identity, write, **files):
    """Return whether an identity changes when files are written."""
    before = identity()
    write(**files)
    return identity() != before


@pytest.mark.parametrize(
    "statement",
    [
        "from . import deep",
        "from .deep import f",
        "from ltpipe.a import deep",
        "from ltpipe.a.deep import f as g",
        "import ltpipe.a.deep",
        "import ltpipe.a.deep as d",
        "from ltpipe.a.deep import *",
        "from .. import a\nfrom ..a.deep import f",
        "def run():\n    from .deep import f",
        "try:\n    from ltpipe.a.deep import f\nexcept ImportError:\n    f = None",
    ],
)
def test_every_form_of_import_is_followed(small, statement):
    small(ltpipe__a__job=statement, ltpipe__a__deep="def f(): return 1")

    def identity():
        return code_identity(["ltpipe.a.job"])

    assert changes(identity, small, ltpipe__a__deep="def f(): return 2")
    assert not changes(identity, small, ltpipe__a__deep="def f():\n    'Two.'\n    return 2")


def test_a_module_counts_by_its_contents_and_by_what_is_taken_from_it(small):
    small(
        ltpipe__a="def f(): return 1\ndef g(): return 2",
        ltpipe__b="def f(): return 1\ndef g(): return 2",
        ltpipe__job="from ltpipe.a import f",
    )

    def identity():
        return code_identity(["ltpipe.job"])

    assert not changes(identity, small, ltpipe__job="from .b import f")
    assert changes(identity, small, ltpipe__job="from ltpipe.b import g as f")
    small(ltpipe__x="from ltpipe.a import f\nfrom ltpipe.c import h", ltpipe__c="h = 1")
    small(ltpipe__y="from ltpipe.c import h\nfrom ltpipe.a import f")
    # The same names in another order, and each name from where the other one was.
    assert code_identity(["ltpipe.x"]) != code_identity(["ltpipe.y"])


def test_names_that_a_package_passes_on_count_as_where_they_are(small):
    small(
        ltpipe__pkg____init__="from ltpipe.pkg.one import f\nfrom .two import g",
        ltpipe__pkg__one="def f(): return 1",
        ltpipe__pkg__two="def g(): return 1",
        ltpipe__job="from ltpipe.pkg import f",
    )
    assert set(code_modules(["ltpipe.job"])) == {"ltpipe.job", "ltpipe.pkg.one"}
    direct = code_identity(["ltpipe.job"])
    small(ltpipe__job="from ltpipe.pkg.one import f")
    assert code_identity(["ltpipe.job"]) == direct


def test_a_package_that_imports_lazily_counts_whole(small):
    small(
        ltpipe__pkg____init__="def __getattr__(name): ...",
        ltpipe__pkg__one="f = 1",
        ltpipe__job="from ltpipe.pkg import f",
    )
    assert changes(lambda: code_identity(["ltpipe.job"]), small, ltpipe__pkg__one="f = 2")


def test_a_package_that_binds_the_name_of_its_module_counts_too(small):
    small(
        ltpipe__pkg____init__="fit = 1",
        ltpipe__pkg__fit="x = 1",
        ltpipe__job="from ltpipe.pkg import fit",
    )
    assert changes(lambda: code_identity(["ltpipe.job"]), small, ltpipe__pkg__fit="x = 2")
    assert changes(lambda: code_identity(["ltpipe.job"]), small, ltpipe__pkg____init__="fit = 2")


def test_modules_that_import_each_other_have_identities_that_see_the_whole_circle(small):
    small(
        ltpipe__a="from ltpipe.b import g\nx = 1",
        ltpipe__b="from ltpipe.c import h\nx = 2",
        ltpipe__c="from ltpipe.a import f\nfrom ltpipe.deep import d\nx = 3",
        ltpipe__deep="d = 1",
    )
    for entry in ("ltpipe.a", "ltpipe.b", "ltpipe.c"):
        for number, name in enumerate(("ltpipe__a", "ltpipe__b", "ltpipe__c")):
            text = code.PACKAGE.joinpath(name.removeprefix("ltpipe__") + ".py").read_text()
            edited = {name: f"{text}\ny = '{number}{entry}'"}
            assert changes(lambda e=entry: code_identity([e]), small, **edited)
        deep = {"ltpipe__deep": f"d = '{entry}'"}
        assert changes(lambda e=entry: code_identity([e]), small, **deep)
    one, two = code_identity(["ltpipe.a"]), code_identity(["ltpipe.a", "ltpipe.b"])
    assert one != two == code_identity(["ltpipe.b", "ltpipe.a"])


def test_an_entry_may_name_an_attribute(small):
    small(ltpipe__losses="class A: ...\nclass B: ...")
    one, other = (code_identity([f"ltpipe.losses:{name}"]) for name in "AB")
    assert one != other
    assert set(code_modules(["ltpipe.losses:A"])) == {"ltpipe.losses"}


def test_a_plug_ins_neighbours_are_followed(small, monkeypatch):
    folder = small(
        ltpipe__losses="class Loss: ...",
        mine__my_head="from ltpipe.losses import Loss\nimport numpy\nimport helper\n"
        "from tools.inner import f\n",
        mine__helper="from tools import other\nx = 1",
        mine__tools____init__="y = 1",
        mine__tools__inner="from . import other\nf = 1",
        mine__tools__other="z = 1",
        mine__unused="z = 1",
    )
    plugin = folder / "mine/my_head.py"

    def identity():
        return code_identity([plugin])

    before = identity()
    monkeypatch.chdir(folder)
    found = set(code_modules(["mine/my_head.py"]))
    names = ("my_head", "helper", "tools/__init__", "tools/inner", "tools/other")
    assert found == {"ltpipe.losses", *[f"mine/{name}.py" for name in names]}
    assert code_identity(["mine/my_head.py"]) == before
    for name in names:
        text = (folder / f"mine/{name}.py").read_text()
        edited = {f"mine__{name.replace('/', '__')}": text + "\nnew = 1"}
        assert changes(identity, small, **edited)
    assert not changes(identity, small, mine__unused="z = 2")
    assert changes(identity, small, ltpipe__losses="class Loss: x = 1")
    one, other = (code_identity([f"mine/my_head.py:{name}"]) for name in "AB")
    assert len({one, other, identity()}) == 3
    # Wherever it lies.
    now = identity()
    (folder / "mine").rename(folder / "yours")
    assert code_identity([folder / "yours/my_head.py"]) == now


def test_a_plug_in_beside_the_package_is_one_too(small):
    folder = small(my_head="import helper", helper="x = 1")
    assert changes(lambda: code_identity([folder / "my_head.py"]), small, helper="x = 2")


def test_other_files_count_by_their_bytes_and_names(tmp_path):
    page = tmp_path / "page.js"
    page.write_bytes(b"1")
    module = "ltpipe.evaluation.metrics"
    one = code_identity([module, page])
    assert one != code_identity([module])
    assert list(code_modules([page])) == [str(page)]
    own = REPOSITORY / "ltpipe/evaluation/templates/page.js"
    assert list(code_modules([own])) == ["ltpipe/evaluation/templates/page.js"]
    page.write_bytes(b"2")
    assert code_identity([module, page]) != one
    page.write_bytes(b"1")
    assert code_identity([page, module]) == one
    assert code_identity([module, page.rename(tmp_path / "other.js")]) != one


def test_an_entry_that_is_not_there_is_one_line(tmp_path):
    (tmp_path / "bad.py").write_text("x = (")
    (tmp_path / "folder.py").mkdir()
    os.mkfifo(tmp_path / "pipe.py")
    names = [
        "ltpipe.nothing",
        "torch",
        "",
        "nothing.py",
        "a\0.py",
        "x" * 5000 + ".py",
        *map(str, tmp_path.iterdir()),
    ]
    for name in names:
        with pytest.raises(InputError) as caught:
            code_identity([name])
        assert "\n" not in str(caught.value)


def test_an_edited_file_is_read_again(small):
    folder = small(ltpipe__a="x = 1")
    first = code_identity(["ltpipe.a"])
    (folder / "ltpipe/a.py").write_text("x = 2")
    assert code_identity(["ltpipe.a"]) != first


# ---- what is excluded ------------------------------------------------------------------------


def test_what_is_excluded_computes_nothing():
    for name in NOT_PART_OF_RESULTS:
        path = REPOSITORY.joinpath(*name.split(".")).with_suffix(".py")
        assert path.is_file(), f"{name} is not there any more"
        imported = {found.module.partition(".")[0] for found in code._read(path).imports}
        assert not imported & {"torch", "numpy", "pandas", "h5py", "random"}, name


class OtherWords(ast.NodeTransformer):
    """Says everything in other words, turns tables round, draws all bars, names files otherwise."""

    def visit_Constant(self, node):
        if isinstance(node.value, str):
            words = " " in node.value and not node.value.isspace()
            text = f"in other words: {node.value}" if words else node.value
            return ast.Constant({".tmp": ".unfinished"}.get(text, text))
        return node

    def visit_Dict(self, node):
        self.generic_visit(node)
        return ast.Dict(node.keys[::-1], node.values[::-1])

    def visit_keyword(self, node):
        self.generic_visit(node)
        return ast.keyword(node.arg, ast.Constant(False)) if node.arg == "disable" else node


PIPELINE = """
import importlib
import json
import sys
import threading
from pathlib import Path

import torch

from ltpipe.plan.entries import job_module
from tests import support

def run_job(module, spec, *rest, **inputs):
    specs.append(spec)
    threading.setprofile(note)
    sys.setprofile(note)
    try:
        return run(module, spec, *rest, **inputs)
    finally:
        sys.setprofile(None)
        threading.setprofile(None)


def note(frame, event, argument):
    if event == "call" and frame.f_code.co_name != "<module>":
        ran.add(frame.f_code.co_filename)


torch.set_num_threads(1)
specs, ran = [], set()
run, support.run_job = support.run_job, run_job
base = Path(sys.argv[1])
backbone = {**support.CE, "epochs": 1}
data = support.draw(base)
trained = support.train(base / "stage1", backbone, data)
store = support.embed(base / "features", backbone, trained, data)
method = {"kind": "classifier", "epochs": 2}
spec = {"kind": "stage2", "method": method, "groups": "ranks", "seed": 0}
module = importlib.import_module(job_module(spec))
support.run_job(module, spec, base / "stage2", features_features=store)
print(json.dumps([specs, sorted(ran)]))
"""


def results_of(copy, output):
    """Run a small pipeline with a copy of the package.

    Returns its results' bytes by name, its specs, and the package's files whose functions ran.
    """
    done = subprocess.run(
        [sys.executable, "-c", PIPELINE, str(output)],
        env={**os.environ, "PYTHONPATH": f"{copy.folder.parent}:{REPOSITORY}"},
        cwd=copy.folder.parent,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    # Manifests and histories hold the seconds that a run took.
    kept = [path for path in output.rglob("*") if path.suffix in (".h5", ".safetensors", ".csv")]
    results = {path.name: path.read_bytes() for path in kept if path.name != "history.csv"}
    specs, ran = json.loads(done.stdout.splitlines()[-1])
    return results, specs, [Path(name) for name in ran if name.startswith(str(copy.folder))]


@pytest.mark.heavy
def test_variants_of_what_is_excluded_give_equal_results(copy):
    base = copy.folder.parent
    before = copy.identities()
    first, specs, ran = results_of(copy, base / "first")
    assert set(first) >= {"subset.h5", "model.safetensors", "train.h5", "predictions.h5"}
    # Every module whose functions run in a job counts, those aside.
    counted = {name for spec in specs for name in copy.code.code_modules(code_entries(spec))}
    names = {".".join(path.relative_to(base).with_suffix("").parts) for path in ran}
    assert len(names) > 20
    assert {name.removesuffix(".__init__") for name in names} - counted <= set(NOT_PART_OF_RESULTS)
    for name in NOT_PART_OF_RESULTS:
        path = base.joinpath(*name.split(".")).with_suffix(".py")
        tree = OtherWords().visit(ast.parse(path.read_text()))
        path.write_text(ast.unparse(ast.fix_missing_locations(tree)) + "\n\nUNUSED = 1\n")
    assert results_of(copy, base / "second")[0] == first
    assert copy.identities() == before
    # The comparison sees what does count.
    copy.replace("utils/seeding.py", "[str(seed), *map", "[str(seed + 1), *map")
    assert results_of(copy, base / "third")[0] != first
    assert copy.identities()["classifier"] != before["classifier"]
