"""Plug-ins: Python files of one's own that register losses, methods, networks and readers.

An experiment file names them under `plugins`. Each becomes a module `ltpipe_plugins.STEM` with the
folder that it lies in as its package, so `from .helpers import f` and `from . import helpers` find
its neighbours; a folder with `__init__.py` is a plug-in as well. Two plug-ins of one name can't be
loaded together.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterable
from pathlib import Path

from ltpipe.config.registry import forget
from ltpipe.utils.errors import InputError

_PACKAGE = "ltpipe_plugins"


def is_plugin(module: str) -> bool:
    """Return whether a module is a plug-in, or a neighbour that one imports."""
    return module.startswith(f"{_PACKAGE}.")


def locate_plugins(names: Iterable[str], folder: Path) -> tuple[Path, ...]:
    """Return the files that are named relative to `folder`, absolute and each once.

    Raises:
        InputError: a file is not there, or is no Python.
    """
    files = []
    for number, name in enumerate(names):
        path = (folder / Path(name).expanduser()).resolve()
        path = path / "__init__.py" if path.is_dir() else path
        if path.suffix != ".py" or not path.is_file():
            raise InputError(
                f"plugins[{number}]: {path} is no Python file; name one relative to the "
                "experiment file"
            )
        files.append(path)
    return tuple(dict.fromkeys(files))


def load_plugins(paths: Iterable[Path]) -> None:
    """Import plug-ins, so that their names are registered; those loaded already stay as they are.

    Raises:
        InputError: a plug-in can't be imported, takes a name that is there already, or has the
            file name of another plug-in.
    """
    for path in map(Path, paths):
        stem = path.parent.name if path.name == "__init__.py" else path.stem
        name = f"{_PACKAGE}.{stem}"
        loaded = sys.modules.get(name)
        if loaded is None:
            _load(name, path)
        elif loaded.__file__ != str(path):
            raise InputError(
                f"two plug-ins are called {stem}: {loaded.__file__} and {path}; rename one"
            )


def _load(name: str, path: Path) -> None:
    if not path.is_file():
        raise InputError(f"plug-in {path} does not exist")
    spec = importlib.util.spec_from_file_location(
        name, path, submodule_search_locations=[str(path.parent)]
    )
    if spec is None or spec.loader is None:
        raise InputError(f"plug-in {path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        forget(name)
        for part in [part for part in sys.modules if f"{part}.".startswith(f"{name}.")]:
            del sys.modules[part]
        if isinstance(error, InputError):
            raise
        text = f"{type(error).__name__}: {error}"
        raise InputError(f"plug-in {path} can't be imported: {' '.join(text.split())}") from error
