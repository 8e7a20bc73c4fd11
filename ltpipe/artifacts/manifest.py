"""What an artifact was made from: code identities and manifests."""

from __future__ import annotations

import ast
import hashlib
import io
import json
import platform
import resource
import tokenize
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from ltpipe import __version__
from ltpipe.config.base import canonical_json
from ltpipe.utils.errors import InputError
from ltpipe.utils.io import file_sha256, is_temporary, write_json_atomic

PACKAGE = Path(__file__).resolve().parents[1]
MANIFEST = "manifest.json"
# Records of a run, such as seconds an epoch: they differ from run to run and nothing reads them on.
_RECORDS = ("history.csv",)
# Snakemake's own mark in folders that are outputs.
_TIMESTAMP = ".snakemake_timestamp"

# Settings reach a result through its spec alone; the registry and the lazy package of losses only
# say where a name's module is; the others write files or messages and never change a number.
NOT_PART_OF_RESULTS = (
    "ltpipe",
    "ltpipe.config",
    "ltpipe.config.registry",
    "ltpipe.losses",
    "ltpipe.artifacts.divergence",
    "ltpipe.utils.errors",
    "ltpipe.utils.io",
    "ltpipe.artifacts.job",
    "ltpipe.utils.progress",
)
_SKIPPED_TOKENS = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENCODING,
    tokenize.ENDMARKER,
}


def _path_of(module: str) -> Path | None:
    parts = module.split(".")
    if parts[0] != PACKAGE.name:
        return None
    base = PACKAGE.joinpath(*parts[1:])
    for path in (base.with_suffix(".py"), base / "__init__.py"):
        if path.is_file():
            return path
    return None


def _counts(module: str) -> bool:
    return module not in NOT_PART_OF_RESULTS and not module.startswith("ltpipe.config.")


@cache
def _read(path: Path, stamp: tuple[int, int]) -> tuple[str, tuple[str, ...]]:
    """Return the hash of a module's tokens and the ltpipe modules that it imports."""
    source = path.read_text(encoding="utf-8")
    tree = ast.parse(source, filename=str(path))
    imported: list[str] = []
    docstrings: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                imported.append(inner if _path_of(inner) else node.module)
        elif (
            isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, str)
        ):
            docstrings.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    tokens: list[str] = []
    indent = 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.INDENT:
            indent += 1
        elif token.type == tokenize.DEDENT:
            indent -= 1
        if token.type in _SKIPPED_TOKENS or token.start[0] in docstrings:
            continue
        # The depth of indentation is part of the program; its width is not.
        tokens.append(f"{indent}:{token.string}\x1f")
    digest = hashlib.sha256("".join(tokens).encode()).hexdigest()
    return digest, tuple(m for m in imported if m.split(".")[0] == PACKAGE.name)


def code_modules(entries: Iterable[str]) -> dict[str, str]:
    """Return the modules that results of `entries` depend on, each with its hash.

    Import statements inside the package are followed without importing anything. Comments, blank
    lines, docstrings and the width of indentation do not count.

    Raises:
        InputError: an entry names no module of the package.
    """
    modules: dict[str, str] = {}
    queue = list(entries)
    for entry in queue:
        if _path_of(entry) is None:
            raise InputError(f"there is no module {entry!r}")
    while queue:
        module = queue.pop()
        path = _path_of(module)
        if module in modules or path is None or not _counts(module):
            continue
        stat = path.stat()
        modules[module], imported = _read(path, (stat.st_mtime_ns, stat.st_size))
        queue += imported
    return dict(sorted(modules.items()))


def code_identity(entries: Iterable[str]) -> str:
    """Return the first 10 hex digits of the SHA-256 over the modules behind `entries`."""
    return identity_of_modules(code_modules(entries))


def identity_of_modules(modules: Mapping[str, str]) -> str:
    """Return the code identity of modules, given each with its hash."""
    text = "\n".join(f"{name} {modules[name]}" for name in sorted(modules))
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that numbers depend on."""
    found = {"python": platform.python_version(), "ltpipe": __version__}
    names = ("torch", "torchvision", "open_clip_torch", "numpy", "h5py", "scikit-learn", "nflows")
    for name in (*names, "snakemake"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def peak_memory_mib() -> float:
    """Return the highest resident memory of this process so far, in MiB."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)


def artifact_files(folder: Path) -> list[Path]:
    """Return the files that an artifact consists of, its manifest and unfinished ones aside."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.is_file()
        and path != folder / MANIFEST
        and path.name != _TIMESTAMP
        and not is_temporary(path)
        and "resume" not in path.relative_to(folder).parts[:-1]
    )


def write_manifest(
    folder: Path,
    *,
    spec: Mapping[str, Any],
    code: str,
    modules: Mapping[str, str],
    inputs: Mapping[str, Path],
    facts: Mapping[str, Any],
    files: Mapping[str, Path] | None = None,
) -> None:
    """Write `folder`/manifest.json, the last file of an artifact.

    It holds the spec, the code identity with its modules, the contents of the artifacts in the
    folders `inputs`, SHA-256 sums of the `files` from outside by the names that settings give
    them and of every file in the folder, versions, and `facts` such as device and wall time.
    """
    outputs = artifact_files(folder)
    write_json_atomic(
        folder / MANIFEST,
        {
            "format": "ltpipe-manifest/1",
            "spec": spec,
            "code": code,
            "modules": modules,
            "inputs": {
                role: {"path": str(path), "content": content_of(read_manifest(path))}
                for role, path in inputs.items()
            },
            "files": {name: file_sha256(path) for name, path in (files or {}).items()},
            "outputs": {path.relative_to(folder).as_posix(): file_sha256(path) for path in outputs},
            "versions": versions(),
            "peak_memory_mib": peak_memory_mib(),
            **facts,
        },
    )


def input_beside(folder: Path, named: Path) -> Path:
    """Return the folder that an artifact's manifest names as an input.

    It lies below the working folder, or below a folder that has the artifact.

    Raises:
        InputError: it is not there.
    """
    for base in (Path(), *folder.resolve().parents):
        if (base / named).is_dir():
            return base / named
    raise InputError(f"{folder}: what it was made from, {named}, is not there")


def content_of(manifest: Mapping[str, Any]) -> str:
    """Return the SHA-256 of what an artifact is: its spec and its files, not when it was made.

    An artifact that was made again and came out the same has the same content.
    """
    outputs = {name: value for name, value in manifest["outputs"].items() if name not in _RECORDS}
    text = canonical_json({"spec": manifest["spec"], "outputs": outputs})
    return hashlib.sha256(text.encode()).hexdigest()


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return `folder`/manifest.json.

    Raises:
        InputError: the file is missing or damaged.
    """
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; the artifact is not finished") from None
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise InputError(f"{path}: damaged; delete the folder and run again") from None
    except OSError as error:
        raise InputError(f"{path}: can't be read ({error.strerror})") from None
    if not _is_manifest(manifest):
        raise InputError(f"{path}: not a manifest of this version; delete the folder and run again")
    return manifest


def _is_manifest(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and value.get("format") == "ltpipe-manifest/1"
        and all(isinstance(value.get(key), dict) for key in ("spec", "modules", "outputs"))
        and isinstance(value.get("inputs"), dict)
        and all(
            isinstance(entry, dict) and isinstance(entry.get("path"), str)
            for entry in value["inputs"].values()
        )
    )
