"""Files from elsewhere may be hostile: nothing in them is run, and nothing leaves its folder."""

from __future__ import annotations

import ast
import io
import os
import pickle
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from ltpipe.data import download
from ltpipe.data.readers import cifar

PACKAGE = Path(download.__file__).resolve().parents[1]
FORBIDDEN = {
    "eval",
    "exec",
    "compile",
    "os.system",
    "os.popen",
    "pickle.Unpickler",
    "pandas.read_pickle",
    "pd.read_pickle",
    "yaml.unsafe_load",
    "yaml.full_load",
}
# Modules that run what a file says, and all that may be used of them: an error's name, and the
# class to derive a reader from that looks names up in a table of its own.
UNSAFE = {"pickle", "marshal", "shelve", "dill", "joblib"}
HARMLESS = {"pickle.UnpicklingError", "pickle.Unpickler"}


def modules() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        yield path.relative_to(PACKAGE).as_posix(), ast.parse(path.read_text(encoding="utf-8"))


def calls() -> Iterator[tuple[str, str, ast.Call]]:
    for name, tree in modules():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                yield name, ast.unparse(node.func), node


def keyword(call: ast.Call, name: str) -> object:
    for entry in call.keywords:
        if entry.arg == name and isinstance(entry.value, ast.Constant):
            return entry.value.value
    return None


def test_nothing_in_the_package_unpickles_or_evaluates():
    for name, tree in modules():
        for node in ast.walk(tree):
            where = f"{name}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.ImportFrom):
                assert (node.module or "").split(".")[0] not in UNSAFE, where
            if isinstance(node, ast.Import):
                assert not {alias.name for alias in node.names if alias.asname} & UNSAFE, where
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) in UNSAFE:
                assert ast.unparse(node) in HARMLESS, where
            bases = getattr(node, "bases", [])
            if "pickle.Unpickler" in map(ast.unparse, bases):
                assert "def find_class" in ast.unparse(node), where
                assert "super()" not in ast.unparse(node), where
    for name, function, call in calls():
        assert function not in FORBIDDEN, f"{name}:{call.lineno}"
        if function == "torch.load":
            assert keyword(call, "weights_only") is True, f"{name}:{call.lineno}"
        if function in ("np.load", "numpy.load"):
            assert keyword(call, "allow_pickle") is False, f"{name}:{call.lineno}"
        if function == "yaml.load":
            loader = ast.unparse(next(e.value for e in call.keywords if e.arg == "Loader"))
            assert loader == "_PlainKeys", f"{name}:{call.lineno}"
        if function.startswith("subprocess."):
            assert keyword(call, "shell") is None, f"{name}:{call.lineno}"
        assert not function.endswith((".extractall", ".extract")), f"{name}:{call.lineno}"


def test_configuration_is_read_with_safe_types_only():
    import yaml

    from ltpipe.config.files import _PlainKeys

    assert issubclass(_PlainKeys, yaml.constructor.SafeConstructor)


class Harm:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_hostile_cifar_batch_runs_nothing(tmp_path, protocol):
    harm = tmp_path / "harm"
    data = pickle.dumps({b"data": Harm(harm), b"labels": [0]}, protocol=protocol)
    with pytest.raises(pickle.UnpicklingError, match="never does"):
        cifar._ArrayUnpickler(io.BytesIO(data), encoding="bytes").load()
    assert not harm.exists()


def test_hostile_weights_run_nothing(tmp_path):
    from ltpipe.models.published import read_published
    from ltpipe.utils.errors import InputError

    harm, path = tmp_path / "harm", tmp_path / "weights.pth"
    torch.save({"weight": torch.ones(1), "harm": Harm(harm)}, path)
    with pytest.raises(InputError, match="more than tensors"):
        read_published(path)
    assert not harm.exists()


def member(name: str, **values: object) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    for key, value in values.items():
        setattr(info, key, value)
    return info


@pytest.mark.parametrize(
    "hostile",
    [
        member("../escaped", size=4),
        member("/tmp/ltpipe-escaped", size=4),
        member("inside/../../escaped", size=4),
        member("link", type=tarfile.SYMTYPE, linkname="../escaped"),
        member("link", type=tarfile.LNKTYPE, linkname="/etc/passwd"),
        member("device", type=tarfile.CHRTYPE),
        member("pipe", type=tarfile.FIFOTYPE),
    ],
    ids=lambda info: f"{info.name} {info.type!r}",
)
def test_archives_unpack_inside_their_folder_alone(tmp_path, hostile):
    archive, folder = tmp_path / "a.tar", tmp_path / "to"
    with tarfile.open(archive, "w") as tar:
        tar.addfile(member("inside/fine", size=4), io.BytesIO(b"fine"))
        tar.addfile(hostile, io.BytesIO(b"evil") if hostile.size else None)
    folder.mkdir()
    with pytest.raises(OSError, match="outside its folder"):
        download._unpack(archive, folder)
    assert {path.name for path in folder.rglob("*")} <= {"inside", "fine"}
    assert {path.name for path in tmp_path.iterdir()} == {"a.tar", "to"}
    assert not Path("/tmp/ltpipe-escaped").exists()


def test_a_link_inside_an_archive_leads_nowhere(tmp_path):
    """A link first and a file through it next is the classic way out."""
    archive, folder = tmp_path / "a.tar", tmp_path / "to"
    outside = tmp_path / "outside"
    outside.mkdir()
    with tarfile.open(archive, "w") as tar:
        tar.addfile(member("way", type=tarfile.SYMTYPE, linkname=str(outside)))
        tar.addfile(member("way/evil", size=4), io.BytesIO(b"evil"))
    folder.mkdir()
    with pytest.raises(OSError):
        download._unpack(archive, folder)
    assert list(outside.iterdir()) == []


def test_an_npy_with_objects_is_not_loaded(tmp_path):
    from ltpipe.data.readers.features import read_features
    from ltpipe.utils.errors import InputError

    harm = tmp_path / "harm"
    np.save(tmp_path / "a.npy", np.array([Harm(harm)], dtype=object), allow_pickle=True)
    np.save(tmp_path / "l.npy", np.array([0]))
    with pytest.raises(InputError, match="allow_pickle=False"):
        read_features(tmp_path / "a.npy", tmp_path / "l.npy")
    assert not harm.exists()
