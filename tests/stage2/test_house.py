"""How stage two is laid out: methods apart from each other, and one way to predict."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys

import pytest

from ltpipe.config.registry import module_of, registered
from ltpipe.plan.code import code_modules

METHODS = {kind: module_of("method", kind) for kind in registered("method")}


@pytest.mark.parametrize("kind", METHODS)
def test_no_method_is_reached_from_another(kind):
    others = set(METHODS.values()) - {METHODS[kind]}
    assert not others & set(code_modules([METHODS[kind]]))


@pytest.mark.parametrize("kind", METHODS)
def test_every_method_predicts_by_one_function(kind):
    module = importlib.import_module(METHODS[kind])
    assert list(inspect.signature(module.logits).parameters) == ["fitted", "samples"]


def test_planning_reads_the_settings_of_all_methods_without_torch():
    code = "import sys; from ltpipe.config.registry import load, registered; "
    code += "[load('method', kind) for kind in registered('method')]; "
    code += "print(sorted({'torch', 'h5py', 'pandas'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
