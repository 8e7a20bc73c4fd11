"""The identity of code: a hash over the syntax trees that can change a job's results.

The hash is taken over a canonical form of each module's syntax tree, and an import counts as the
hash of what it resolves to, as in a Merkle tree. So comments, docstrings, formatting and the
names of modules do not count, a statement anywhere below a job does, and Python 3.11 to 3.13
agree. Nothing is imported to find out.
"""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ltpipe.plan.syntax import Imported, Tree, canonical_tree
from ltpipe.utils.errors import InputError

PACKAGE = Path(__file__).resolve().parents[1]

# What a job may reach and what still can't change its results. Every other module counts.
# tests/plan/test_code.py runs a pipeline with variants of these and compares the bytes.
NOT_PART_OF_RESULTS = (
    # The type of an error and how a message is put: a job that raises one leaves no results.
    "ltpipe.utils.errors",
    # Bars and lines for whoever watches.
    "ltpipe.utils.progress",
    # Moves the bytes that it is given to the disk; what they are is decided elsewhere.
    "ltpipe.utils.io",
    # Says where a name's code is; that code is among the entries, with the attribute's name.
    "ltpipe.config.registry",
    # Carries the arguments of a job and computes nothing.
    "ltpipe.artifacts.job",
    # Compares hashes of what a job reads: it fits, or is refused.
    "ltpipe.artifacts.reading",
    # Writes the record of a run beside its results, and compares hashes: fits, or is refused.
    "ltpipe.artifacts.manifest",
    # Compares hashes of outside files: they fit, or the job is refused.
    "ltpipe.plan.fingerprints",
)


@dataclass
class _Module:
    """A file among others: `own` is its hash by itself, `edges` the files behind each import.

    `root` is the folder below which a plug-in's neighbours lie; None for the package's modules.
    """

    path: Path
    root: Path | None
    own: str = ""
    edges: list[tuple[Path, ...]] = field(default_factory=list)


def code_modules(entries: Iterable[str | Path]) -> dict[str, str]:
    """Return what results of `entries` depend on: each module's or file's name and own hash.

    An entry is a module of the package by its dotted name, with `:attribute` after it where one
    of its attributes is meant; the path of a Python file, whose neighbours are followed too; or
    the path of any other file, which counts by its bytes and its name.

    Raises:
        InputError: an entry is not there, or is not Python.
    """
    graph, _ = _gather(entries)
    found = {_name(module): module.own for module in graph.modules.values()}
    return dict(sorted((found | graph.files).items()))


def code_identity(entries: Iterable[str | Path]) -> str:
    """Return 10 hex digits over the contents of `entries` and of all they import.

    Raises:
        InputError: as `code_modules`.
    """
    graph, roots = _gather(entries)
    hashes = _merkle(graph.modules)
    parts = {f"{hashes[path]}:{attribute}" for path, attribute in roots}
    parts |= {f"{Path(name).name}={digest}" for name, digest in graph.files.items()}
    return hashlib.sha256("\n".join(sorted(parts)).encode()).hexdigest()[:10]


@dataclass
class _Graph:
    """Modules that are reached, by path; other files' hashes; and what look-ups have found."""

    modules: dict[Path, _Module] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    located: dict[tuple[Path, str], Path | None] = field(default_factory=dict)

    def locate(self, folder: Path, dotted: str) -> Path | None:
        """Return the file of module `dotted` below `folder`, or None."""
        key = folder, dotted
        if key not in self.located:
            base = folder.joinpath(*dotted.split(".")) if dotted else folder
            candidates = [base / "__init__.py"]
            if dotted:
                candidates.append(base.with_name(base.name + ".py"))
            self.located[key] = next((path for path in candidates if path.is_file()), None)
        return self.located[key]


def _gather(entries: Iterable[str | Path]) -> tuple[_Graph, list[tuple[Path, str]]]:
    """Return the graph below `entries`, and each entry's module with the attribute it names."""
    graph = _Graph()
    roots: list[tuple[Path, str]] = []
    queue: list[_Module] = []
    for entry in entries:
        path, attribute = _entry(entry, graph)
        if path.suffix != ".py":
            graph.files[_shown(path)] = _bytes_digest(path)
            continue
        inside = path.is_relative_to(PACKAGE)
        roots.append((path, attribute))
        queue.append(_Module(path, None if inside else path.parent))
    while queue:
        module = queue.pop()
        if module.path in graph.modules:
            continue
        graph.modules[module.path] = module
        tree = _read(module.path)
        own = [tree.digest]
        for item in tree.imports:
            text, targets = _resolve(item, module, graph)
            own.append(text)
            module.edges.append(tuple(targets))
            for target in targets:
                inside = target.is_relative_to(PACKAGE)
                queue.append(_Module(target, None if inside else module.root))
        module.own = hashlib.sha256("\n".join(own).encode("utf-8", "surrogatepass")).hexdigest()
    return graph, roots


def _entry(entry: str | Path, graph: _Graph) -> tuple[Path, str]:
    """Return the file that an entry means, and the attribute that it names or ''."""
    text = str(entry)
    head, separator, attribute = text.rpartition(":")
    if not separator or "/" in attribute:
        head, attribute = text, ""
    if isinstance(entry, str) and "/" not in text and not head.endswith(".py"):
        module = graph.locate(PACKAGE.parent, head)
        if module is None or head.split(".")[0] != PACKAGE.name:
            raise InputError(f"there is no module {head!r} in {PACKAGE.name}")
        return module, attribute
    path = Path(head if head.endswith(".py") else text)
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise OSError("not a regular file")
    except (OSError, ValueError) as error:
        raise InputError(f"{str(path)!r}: can't be read ({error})") from None
    return path.resolve(), attribute if path.suffix == ".py" else ""


def _name(module: _Module) -> str:
    """Return a module's dotted name, or a plug-in's path, below the working folder if it can be."""
    if module.root is None:
        parts = module.path.relative_to(PACKAGE.parent).with_suffix("").parts
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    return _shown(module.path)


def _shown(path: Path) -> str:
    """Return a path below the package's folder or the working folder, if it lies there."""
    base = PACKAGE.parent if path.is_relative_to(PACKAGE) else Path.cwd()
    return str(path.relative_to(base) if path.is_relative_to(base) else path)


def _bytes_digest(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise InputError(f"{path}: can't be read ({error.strerror})") from None


def _resolve(
    item: Imported, module: _Module, graph: _Graph, passed: tuple[Path, ...] = ()
) -> tuple[str, list[Path]]:
    """Return how an import counts by itself, and the files that it stands for.

    Modules from elsewhere count by name, our own by what is in them. `passed` are the packages
    through which the name was passed on so far.
    """
    folder = _folder(item, module)
    if folder is None:
        return _elsewhere(item), []
    base = graph.locate(folder, item.module)
    if item.name is None:
        found = [] if base is None else [base]
        attribute = ""
    else:
        inner = f"{item.module}.{item.name}" if item.module else item.name
        submodule = graph.locate(folder, inner)
        attribute = item.name if submodule is None else ""
        found = [] if submodule is None else [submodule]
        if base is not None and not _excluded(base):
            tree = _read(base)
            through = None if base in passed else _reexport(item, base, tree)
            if through is not None:
                return _resolve(through, _Module(base, None), graph, (*passed, base))
            if submodule is None or item.name in tree.bound:
                found.append(base)
            if submodule is None and tree.lazy and item.name not in tree.bound:
                # Which of its modules the name comes from can't be read off, so all count.
                found += sorted(base.parent.rglob("*.py"))
        elif base is not None and submodule is None:
            found.append(base)
    if not found:
        return _elsewhere(item), []
    if not found[0].is_relative_to(PACKAGE):
        # A plug-in's packages may do anything when they are imported.
        found += _parents(found[0], folder)
    found = [path for path in dict.fromkeys(found) if not _excluded(path)]
    return f"ours:{attribute}", found


def _elsewhere(item: Imported) -> str:
    return f"{'.' * item.level}{item.module}:{item.name or ''}"


def _folder(item: Imported, module: _Module) -> Path | None:
    """Return the folder below which an import is looked up; None if it is not one of ours."""
    if item.level:
        return _above(module.path, item.level)
    if item.module.partition(".")[0] == PACKAGE.name:
        return PACKAGE.parent
    return module.root


def _above(path: Path, level: int) -> Path:
    return path.parents[min(level, len(path.parents)) - 1]


def _reexport(item: Imported, base: Path, tree: Tree) -> Imported | None:
    """Return the import by which one of our packages has the name that is asked of it."""
    if base.name != "__init__.py" or not base.is_relative_to(PACKAGE) or item.name is None:
        return None
    through = tree.top.get(item.name)
    return through if tree.bound.get(item.name) == 1 else None


def _parents(path: Path, folder: Path) -> list[Path]:
    """Return the `__init__.py` of the folders between `folder` and `path`."""
    between = [parent for parent in path.parents if parent.is_relative_to(folder)]
    candidates = [parent / "__init__.py" for parent in between if parent != folder]
    return [candidate for candidate in candidates if candidate.is_file()]


_EXCLUDED = {
    PACKAGE.parent.joinpath(*name.split(".")).with_suffix(".py") for name in NOT_PART_OF_RESULTS
}


def _excluded(path: Path) -> bool:
    return path in _EXCLUDED


def _merkle(modules: dict[Path, _Module]) -> dict[Path, str]:
    """Return each module's hash over itself and everything it imports, names of modules aside."""
    hashes: dict[Path, str] = {}
    for circle in _circles(modules):
        # A module alone takes one round. Modules that import each other start from their own
        # hashes and take in one import more a round, until each has seen the whole circle.
        inner = {path: modules[path].own for path in circle}
        for _ in circle:
            known = hashes | inner if len(circle) > 1 else hashes
            inner = {path: _joined(modules[path], known) for path in circle}
        hashes |= inner
    return hashes


def _joined(module: _Module, known: dict[Path, str]) -> str:
    lines = [module.own]
    # An import of itself, as of a name in the module's own package, adds nothing.
    lines += [
        " ".join(known[path] for path in targets if path != module.path) for targets in module.edges
    ]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _circles(modules: dict[Path, _Module]) -> Iterator[list[Path]]:
    """Yield groups of modules that import each other, imported ones first (Tarjan 1972)."""
    order: dict[Path, int] = {}
    lowest: dict[Path, int] = {}
    stack: list[Path] = []
    done: set[Path] = set()

    def visit(path: Path) -> Iterator[list[Path]]:
        order[path] = lowest[path] = len(order)
        stack.append(path)
        for target in dict.fromkeys(t for targets in modules[path].edges for t in targets):
            if target not in order:
                yield from visit(target)
                lowest[path] = min(lowest[path], lowest[target])
            elif target not in done:
                lowest[path] = min(lowest[path], order[target])
        if lowest[path] == order[path]:
            circle = stack[stack.index(path) :]
            del stack[-len(circle) :]
            done.update(circle)
            yield circle

    for path in modules:
        if path not in order:
            yield from visit(path)


_TREES: dict[Path, tuple[tuple[int, int], Tree]] = {}


def _read(path: Path) -> Tree:
    """Return what a file of Python says; read once for each state of the file."""
    try:
        status = path.stat()
        stamp = status.st_mtime_ns, status.st_size
        known = _TREES.get(path)
        if known is not None and known[0] == stamp:
            return known[1]
        source = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: can't be read ({error.strerror})") from None
    tree = canonical_tree(source, str(path))
    _TREES[path] = stamp, tree
    return tree
