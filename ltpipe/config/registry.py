"""Names that an experiment file may use: each is given where its class or function is defined.

```python
@loss("focal", paper="Lin et al., ICCV 2017")
class FocalLoss(Loss):
    \"\"\"Cross-entropy that fades for samples already right.\"\"\"
```

The built-in names are found by reading the package's source and not by importing it, so that
planning imports no torch and no method's module more than it needs; decorators there stand alone
at the start of a line, with literal arguments. A plug-in's names are added when it is imported.
"""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ltpipe.utils.errors import InputError, nearest

_PACKAGE = Path(__file__).resolve().parents[1]
_FOLDERS = ("config", "data/readers", "losses", "models", "stage1", "stage2", "training")
# What a decorator registers, by the word that messages and `ltpipe list` have for it.
_KINDS = {
    "reader": "source",
    "network": "network",
    "towers": "tower",
    "loss": "loss",
    "rebalancing": "rule",
    "system": "system",
    "method": "method",
}
KINDS = tuple(_KINDS.values())
_DECORATED = re.compile(rf"^@({'|'.join(_KINDS)})\(", re.MULTILINE)

_Object = TypeVar("_Object", bound=Callable[..., Any])


@dataclass(frozen=True)
class Registration:
    """A registered name: where it is defined, what it is, and which paper it comes from.

    `runs` is the module whose functions do the work, `file` the one of a plug-in.
    """

    module: str
    attribute: str
    summary: str
    paper: str = ""
    runs: str = ""
    file: Path | None = None


def reader(*names: str, paper: str = "") -> Callable[[_Object], _Object]:
    """Register the settings of a data set under the values of its `source`."""
    return _decorator("reader", names, paper)


def network(*names: str, paper: str = "") -> Callable[[_Object], _Object]:
    """Register a function that returns a backbone."""
    return _decorator("network", names, paper)


def towers(*names: str, paper: str = "") -> Callable[[_Object], _Object]:
    """Register a function that returns an image and a text tower."""
    return _decorator("towers", names, paper)


def loss(*names: str, paper: str = "") -> Callable[[_Object], _Object]:
    """Register a loss; its settings are the arguments of its constructor."""
    return _decorator("loss", names, paper)


def rebalancing(*names: str, paper: str = "") -> Callable[[_Object], _Object]:
    """Register a rule that samples or weighs classes; settings name it under `rule`."""
    return _decorator("rebalancing", names, paper)


def system(*names: str, paper: str = "", runs: str = "") -> Callable[[_Object], _Object]:
    """Register the settings of a way of training a backbone.

    The module that does it has ``run(job)``: the one of the settings, or the one named by `runs`.
    """
    return _decorator("system", names, paper, runs)


def method(*names: str, paper: str = "", runs: str = "") -> Callable[[_Object], _Object]:
    """Register the settings of a stage-two method.

    The module that does it has ``run(job)`` and ``logits(fitted, samples)``: the one of the
    settings, or the one named by `runs`.
    """
    return _decorator("method", names, paper, runs)


def registered(kind: str) -> Mapping[str, Registration]:
    """Return every name of a kind, sorted: the package's own, then those of loaded plug-ins."""
    return {**_built_in()[kind], **_ADDED[kind]}


def check_name(kind: str, name: str) -> str:
    """Return `name`, or raise InputError with the nearest registered name of this kind."""
    known = registered(kind)
    if name not in known:
        raise InputError(
            f"unknown {kind} {name!r}{nearest(name, known)}; known: {', '.join(known)}"
        )
    return name


def find(kind: str, name: str) -> Registration:
    """Return what is registered under `name`; InputError as of `check_name`."""
    return registered(kind)[check_name(kind, name)]


def module_of(kind: str, name: str) -> str:
    """Return the module that does the work of `name`."""
    entry = find(kind, name)
    return entry.runs or entry.module


def code_of(kind: str, name: str) -> tuple[str, ...]:
    """Return where the code behind `name` is: the module that does the work, a plug-in's path."""
    entry = find(kind, name)
    if entry.file is None:
        return (entry.runs or entry.module,)
    file = str(entry.file)
    return (file, entry.runs) if entry.runs.startswith(f"{_PACKAGE.name}.") else (file,)


def load(kind: str, name: str) -> Any:
    """Import and return the class or function that is registered under `name`."""
    entry = find(kind, name)
    return getattr(importlib.import_module(entry.module), entry.attribute)


_ADDED: dict[str, dict[str, Registration]] = {kind: {} for kind in KINDS}


def forget(module: str) -> None:
    """Take out what a plug-in and the neighbours that it imports registered."""
    for known in _ADDED.values():
        for name, entry in list(known.items()):
            if f"{entry.module}.".startswith(f"{module}."):
                del known[name]


def _decorator(
    decorator: str, names: tuple[str, ...], paper: str, runs: str = ""
) -> Callable[[_Object], _Object]:
    def register(target: _Object) -> _Object:
        if not target.__module__.startswith(f"{_PACKAGE.name}."):
            _add(_KINDS[decorator], names, target, paper, runs)
        return target

    return register


def _add(
    kind: str, names: tuple[str, ...], target: Callable[..., Any], paper: str, runs: str
) -> None:
    file = Path(inspect.getfile(target)).resolve()
    attribute = target.__name__
    entry = Registration(
        target.__module__, attribute, _first_line(target.__doc__), paper, runs, file
    )
    for name in names:
        if name in _built_in()[kind]:
            raise InputError(
                f"{file}: {kind} {name!r} is one of the package's own; choose another name"
            )
        there = _ADDED[kind].get(name)
        if there is not None:
            raise InputError(
                f"{file}: {kind} {name!r} is registered already, by {there.attribute} of "
                f"{there.file}; choose another name"
            )
        _ADDED[kind][name] = entry


@functools.cache
def _built_in() -> Mapping[str, dict[str, Registration]]:
    found: dict[str, dict[str, Registration]] = {kind: {} for kind in KINDS}
    for folder in _FOLDERS:
        for path in sorted(_PACKAGE.joinpath(folder).rglob("*.py")):
            text = path.read_text(encoding="utf-8")
            if _DECORATED.search(text):
                module = ".".join((_PACKAGE.name, *path.relative_to(_PACKAGE).parts))[:-3]
                for kind, name, entry in _decorated(ast.parse(text), module):
                    if name in found[kind]:
                        there = found[kind][name].module
                        raise InputError(f"{kind} {name!r} is registered by {module} and {there}")
                    found[kind][name] = entry
    return {kind: dict(sorted(known.items())) for kind, known in found.items()}


def _decorated(tree: ast.Module, module: str) -> Iterator[tuple[str, str, Registration]]:
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            for call in node.decorator_list:
                if (
                    isinstance(call, ast.Call)
                    and isinstance(call.func, ast.Name)
                    and call.func.id in _KINDS
                ):
                    facts = {str(word.arg): ast.literal_eval(word.value) for word in call.keywords}
                    summary = _first_line(ast.get_docstring(node))
                    entry = Registration(module, node.name, summary, **facts)
                    for name in call.args:
                        yield _KINDS[call.func.id], ast.literal_eval(name), entry


def _first_line(docstring: str | None) -> str:
    return (docstring or "").strip().partition("\n")[0].rstrip(".")
