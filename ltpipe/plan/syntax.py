"""A canonical form of Python's syntax tree, equal on every Python that can read the code.

Comments, docstrings and other statements that are only a string, `pass`, imports for type checkers
alone, and formatting are left out.
"""

from __future__ import annotations

import ast
import hashlib
import warnings
from dataclasses import dataclass
from typing import Any, NamedTuple

from ltpipe.utils.errors import InputError

# Fields of syntax trees that say nothing about what runs.
_IGNORED_FIELDS = {"ctx", "kind", "type_comment", "type_ignores"}


class Imported(NamedTuple):
    """One imported name: `import module`, or `from module import name` with leading dots."""

    level: int
    module: str
    name: str | None


@dataclass(frozen=True)
class Tree:
    """What one file says.

    Attributes:
        digest: of the canonical tree, in which imports are their local names alone.
        imports: what is imported, in the order of the tree.
        bound: how often each name is bound, anywhere in the file.
        top: imports by the name that they bind at the top level.
        lazy: whether attributes are found by a function of the module's own.
    """

    digest: str
    imports: tuple[Imported, ...]
    bound: dict[str, int]
    top: dict[str, Imported]
    lazy: bool


def canonical_tree(source: bytes | str, name: str) -> Tree:
    """Return the canonical form of Python source.

    Raises:
        InputError: it is not Python of the running version.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            parsed = ast.parse(source, filename=name)
        canon = _Canon()
        canon.write(parsed)
    except SyntaxError as error:
        raise InputError(f"{name}: line {error.lineno}: not Python ({error.msg})") from None
    except ValueError as error:
        raise InputError(f"{name}: not Python ({error})") from None
    except (RecursionError, MemoryError):
        raise InputError(f"{name}: nested too deeply to be read") from None
    top = {
        alias.asname or alias.name: Imported(node.level, node.module or "", alias.name)
        for node in parsed.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    text = "".join(canon.out).encode("utf-8", "surrogatepass")
    return Tree(
        digest=hashlib.sha256(text).hexdigest(),
        imports=tuple(canon.imports),
        bound=canon.bound,
        top=top,
        lazy=any(isinstance(n, ast.FunctionDef) and n.name == "__getattr__" for n in parsed.body),
    )


_FIELDS: dict[type, tuple[str, ...]] = {}


class _Canon:
    """Writes syntax trees as text: `Class(field=value ...)`, fields by name, empty ones left out.

    A field that a later Python adds is empty in code that an earlier one reads, so both agree.
    """

    def __init__(self) -> None:
        self.out: list[str] = []
        self.imports: list[Imported] = []
        self.bound: dict[str, int] = {}

    def write(self, node: Any) -> None:
        kind = type(node)
        fields = _FIELDS.get(kind)
        if fields is None:
            fields = tuple(sorted(set(kind._fields) - _IGNORED_FIELDS))
            _FIELDS[kind] = fields
        out = self.out
        if kind is ast.Name:
            if type(node.ctx) is not ast.Load:
                self._bind(node.id)
            out.append(f"Name({node.id})")
            return
        if kind is ast.Constant:
            out.append(_constant(node.value))
            return
        if kind is ast.JoinedStr:
            self._joined(node)
            return
        if kind in (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef):
            self._bind(node.name)
        out.append(kind.__name__)
        out.append("(")
        for name in fields:
            value = getattr(node, name, None)
            if value is None or value == []:
                continue
            out.append(name)
            out.append("=")
            if isinstance(value, list):
                self._list(value)
            elif isinstance(value, ast.AST):
                if name == "format_spec" and not _pieces(value):
                    out.pop()
                    out.pop()
                    continue
                self.write(value)
            else:
                out.append(f"{value!s} " if isinstance(value, int) else _text(value))
        out.append(")")

    def _list(self, values: list[Any]) -> None:
        self.out.append("[")
        for value in values:
            if isinstance(value, ast.stmt):
                self._statement(value)
                continue
            if isinstance(value, ast.AST):
                self.write(value)
            else:
                # None stands in a dictionary's keys for **, and in defaults of keywords.
                self.out.append("None" if value is None else _text(value))
            self.out.append(",")
        self.out.append("]")

    def _statement(self, node: ast.stmt) -> None:
        """Write a statement, if it does anything."""
        if isinstance(node, ast.Import | ast.ImportFrom):
            for alias in node.names:
                self._import(node, alias)
        elif isinstance(node, ast.If) and _only_for_types(node.test):
            for inner in node.orelse:
                self._statement(inner)
        elif not (isinstance(node, ast.Pass) or _is_text(node)):
            self.write(node)
            self.out.append(";")

    def _import(self, node: ast.Import | ast.ImportFrom, alias: ast.alias) -> None:
        local = alias.asname or alias.name
        self._bind(local.partition(".")[0])
        self.out.append(f"import({local});")
        if isinstance(node, ast.Import):
            self.imports.append(Imported(0, alias.name, None))
        else:
            self.imports.append(Imported(node.level, node.module or "", alias.name))

    def _joined(self, node: ast.JoinedStr) -> None:
        """Write an f-string; versions differ in where they leave empty pieces."""
        self.out.append("JoinedStr[")
        for piece in _pieces(node):
            if isinstance(piece, str):
                self.out.append(_constant(piece))
            else:
                self.write(piece)
        self.out.append("]")

    def _bind(self, name: str) -> None:
        self.bound[name] = self.bound.get(name, 0) + 1


def _only_for_types(test: ast.expr) -> bool:
    """Return whether a condition is `TYPE_CHECKING`, which is false whenever code runs."""
    return (isinstance(test, ast.Name) and test.id == "TYPE_CHECKING") or (
        isinstance(test, ast.Attribute) and test.attr == "TYPE_CHECKING"
    )


def _is_text(node: ast.stmt) -> bool:
    """Return whether a statement is a string and nothing else, such as a docstring."""
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def _pieces(node: ast.AST) -> list[Any]:
    """Return an f-string's parts, neighbouring texts joined and empty ones left out."""
    pieces: list[Any] = []
    for value in node.values:  # type: ignore[attr-defined]
        piece = value.value if isinstance(value, ast.Constant) else value
        if pieces and isinstance(piece, str) and isinstance(pieces[-1], str):
            pieces[-1] += piece
        elif piece != "":
            pieces.append(piece)
    return pieces


def _text(value: str) -> str:
    return f"{len(value)}:{value}"


def _constant(value: Any) -> str:
    if isinstance(value, str):
        return f"str {_text(value)}"
    if isinstance(value, bytes):
        return f"bytes {value.hex()} "
    # Hex has no limit on the number of digits.
    text = hex(value) if type(value) is int else repr(value)
    return f"{type(value).__name__} {text} "
