"""Plug-ins: files of one's own that add names, and what is said where they can't."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ltpipe.cli.program import main
from ltpipe.config.experiment import load_experiment
from ltpipe.config.plugins import load_plugins, locate_plugins
from ltpipe.config.registry import code_of, find, forget, registered
from ltpipe.utils.errors import InputError

CATALOGUE = Path(__file__).resolve().parents[2] / "config"

LOSS = '''
from typing import Annotated

from pydantic import Field

from ltpipe.config.registry import loss
from ltpipe.losses import CrossEntropyLoss

from .{helper} import FACTOR


@loss("{name}", paper="nobody, 2000")
class Scaled(CrossEntropyLoss):
    """Cross-entropy times a factor."""

    def __init__(self, times: Annotated[float, Field(gt=0)] = FACTOR) -> None:
        super().__init__()
        self.times = times

    def per_sample(self, logits, target):
        return self.times * super().per_sample(logits, target)
'''


@pytest.fixture(autouse=True)
def unloaded():
    """Take out what a test loads."""
    yield
    for name in [name for name in sys.modules if name.startswith("ltpipe_plugins.")]:
        forget(name)
        del sys.modules[name]


def write(folder, stem, name, factor=2.0, text=LOSS):
    """Write a plug-in with a loss, and beside it a helper that it imports."""
    folder.mkdir(exist_ok=True, parents=True)
    (folder / "helper.py").write_text(f"FACTOR = {factor}\n")
    path = folder / f"{stem}.py"
    path.write_text(text.format(helper="helper", name=name))
    return path


def experiment(path, plugins, loss):
    path.write_text(
        f"""
experiment: own
plugins: {plugins}
datasets: {{digits-lt: }}
backbones: {{b: {{use: resnet8-ce, loss: {loss}}}}}
methods: {{M: {{use: backbone-head, backbones: {{features: b}}}}}}
"""
    )
    return path


def test_an_experiment_names_a_plug_in_relative_to_its_own_file(tmp_path):
    file = write(tmp_path / "own", "scaled", "scaled")
    path = experiment(tmp_path / "e.yaml", "[own/scaled.py]", "{name: scaled, times: 3}")
    found = load_experiment(path, CATALOGUE)
    loss = found.backbones["b"].settings.loss
    assert (loss.name, loss.times, loss.takes_cosines) == ("scaled", 3.0, False)
    assert loss.identity() == {"name": "scaled", "times": 3.0}
    assert found.plugins == (file,)
    assert code_of("loss", "scaled") == (str(file),)
    assert find("loss", "scaled").summary == "Cross-entropy times a factor"
    path = experiment(tmp_path / "e.yaml", "[own/scaled.py]", "{name: scaled, times: 0}")
    with pytest.raises(InputError, match=r"backbones\.b\.loss\.times: .*greater than 0"):
        load_experiment(path, CATALOGUE)


def test_a_plug_in_finds_the_neighbours_of_its_own_folder(tmp_path):
    first = write(tmp_path / "a", "first", "first", factor=2.0)
    second = write(tmp_path / "b", "second", "second", factor=5.0)
    load_plugins([first, second])
    load_plugins([first])
    assert find("loss", "first").file == first
    factors = [sys.modules[f"ltpipe_plugins.{name}.helper"].FACTOR for name in ("first", "second")]
    assert factors == [2.0, 5.0]


def test_a_folder_may_be_a_plug_in(tmp_path):
    file = write(tmp_path / "mine", "__init__", "of-a-folder")
    load_plugins(locate_plugins(["mine"], tmp_path))
    assert find("loss", "of-a-folder").file == file


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LOSS.replace("{name}", "focal"), "loss 'focal' is one of the package's own"),
        (LOSS + LOSS, "loss 'x' is registered already, by Scaled of"),
        ("1 / 0", "can't be imported: ZeroDivisionError"),
        ("def f(:", "can't be imported: SyntaxError"),
        ("from .nothing import x", "can't be imported: ModuleNotFoundError"),
        ("import no_such_module", "can't be imported: ModuleNotFoundError"),
    ],
)
def test_a_bad_plug_in_is_named_and_leaves_nothing_behind(tmp_path, text, message):
    file = write(tmp_path, "bad", "x", text=text)
    before = {kind: set(registered(kind)) for kind in ("loss", "method")}
    with pytest.raises(InputError, match=message) as error:
        load_plugins([file])
    assert str(file) in str(error.value)
    assert {kind: set(registered(kind)) for kind in ("loss", "method")} == before
    assert "ltpipe_plugins.bad" not in sys.modules


def test_an_argument_that_is_no_setting_is_refused(tmp_path):
    text = LOSS.replace("times: Annotated[float, Field(gt=0)]", "times")
    path = experiment(tmp_path / "e.yaml", "[bare.py]", "{name: bare}")
    write(tmp_path, "bare", "bare", text=text)
    with pytest.raises(InputError, match="argument times of Scaled is a setting: annotate it"):
        load_experiment(path, CATALOGUE)


def test_two_plug_ins_of_one_name_can_not_be_told_apart(tmp_path):
    load_plugins([write(tmp_path / "a", "same", "one")])
    with pytest.raises(InputError, match=r"two plug-ins are called same: .*rename one"):
        load_plugins([write(tmp_path / "b", "same", "two")])


@pytest.mark.parametrize("name", ["absent.py", "e.yaml", "."])
def test_what_is_no_python_file_is_refused(tmp_path, name):
    path = experiment(tmp_path / "e.yaml", f"[{name}]", "{name: ce}")
    with pytest.raises(InputError, match=r"plugins\[0\]: .* is no Python file"):
        load_experiment(path, CATALOGUE)


def test_list_shows_a_kind_and_the_names_of_plug_ins(tmp_path, capsys):
    file = write(tmp_path, "listed", "listed-loss")
    catalogue = ["--catalogue", str(CATALOGUE)]
    assert main(["list", "losses", *catalogue, "--plugins", str(file)]) == 0
    said = capsys.readouterr().out
    assert "listed-loss" in said and "nobody, 2000" in said and "focal" in said
    assert "resnet32" not in said and "dlsa" not in said
    assert main(["list", "methods", *catalogue]) == 0
    said = capsys.readouterr().out
    assert "ffn-paper" in said and "backbone-head" in said and "resnet32" not in said
    assert main(["list", "lossses", *catalogue]) == 2
    assert "did you mean 'losses'" in capsys.readouterr().err


@pytest.mark.heavy
def test_names_are_found_without_torch():
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from ltpipe.plan.workload import load_workload\n"
        f"for path in Path({str(CATALOGUE)!r}, 'experiments').glob('**/*.yaml'):\n"
        "    load_workload(path)\n"
        "loaded = {'torch', 'sklearn', 'matplotlib', 'pandas'} & set(sys.modules)\n"
        "raise SystemExit(f'{loaded}' if loaded else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
