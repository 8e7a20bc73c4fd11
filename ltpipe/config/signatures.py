"""What a registered class or function says of itself: its arguments, and facts of its class.

The package's own are read from their source, since importing them would import torch; those of a
plug-in, which is imported anyway, are asked.
"""

from __future__ import annotations

import ast
import functools
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from pydantic import Field

from ltpipe.config.base import Float
from ltpipe.config.registry import Registration, find, load
from ltpipe.utils.errors import InputError

_PACKAGE = Path(__file__).resolve().parents[1]
# What annotations of arguments that are settings may be made of.
_WORDS = {
    "Annotated": Annotated,
    "Field": Field,
    "Literal": Literal,
    "bool": bool,
    "float": Float,
    "int": int,
    "list": list,
    "str": str,
}


@dataclass(frozen=True)
class Argument:
    """An argument that is a setting: the type of its values, and its default (... for none)."""

    type: Any
    default: Any


def arguments(kind: str, name: str, given: tuple[str, ...]) -> Mapping[str, Argument]:
    """Return the arguments of a registered class or function, but those that others give it.

    Raises:
        InputError: an argument's type is none that settings have.
    """
    entry = find(kind, name)
    found = _asked(kind, name) if entry.file else _read(entry)
    settings = {}
    for argument, annotation, default in found:
        if argument not in given:
            try:
                settings[argument] = Argument(annotation(), default)
            except (KeyError, NameError, TypeError, AttributeError):
                raise InputError(
                    f"{entry.file or entry.module}: argument {argument} of {entry.attribute} is a "
                    f"setting: annotate it with {', '.join(sorted(_WORDS))} or None"
                ) from None
    return settings


def argument_names(kind: str, name: str) -> frozenset[str]:
    """Return the names of the arguments that a registered class or function takes."""
    entry = find(kind, name)
    found = _asked(kind, name) if entry.file else _read(entry)
    return frozenset(argument for argument, _, _ in found)


def fact(kind: str, name: str, attribute: str, default: Any) -> Any:
    """Return a class attribute of a registered class, or `default` where it has none."""
    entry = find(kind, name)
    if entry.file:
        return getattr(load(kind, name), attribute, default)
    for node in _node(entry.module, entry.attribute).body:
        target = node.targets[0] if isinstance(node, ast.Assign) else None
        target = node.target if isinstance(node, ast.AnnAssign) else target
        if isinstance(target, ast.Name) and target.id == attribute:
            return ast.literal_eval(node.value)
    return default


def _read(entry: Registration) -> Iterator[tuple[str, Any, Any]]:
    node = _node(entry.module, entry.attribute)
    if isinstance(node, ast.ClassDef):
        own = [part for part in node.body if isinstance(part, ast.FunctionDef)]
        node = next((part for part in own if part.name == "__init__"), None)
        if node is None:
            return
    positional = [*node.args.posonlyargs, *node.args.args]
    defaults = [None] * (len(positional) - len(node.args.defaults)) + node.args.defaults
    pairs = [*zip(positional, defaults, strict=True)]
    pairs += zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
    for argument, default in pairs:
        if argument.arg != "self":
            value = ... if default is None else ast.literal_eval(default)
            yield argument.arg, functools.partial(_type, argument.annotation), value


def _type(annotation: ast.expr | None) -> Any:
    """Return the type that an annotation of words, unions, Literal and Annotated stands for."""
    match annotation:
        case None:
            raise TypeError("not annotated")
        case ast.Constant(value=None):
            return None
        case ast.Name(id=word):
            return _WORDS[word]
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return _type(left) | _type(right)
        case ast.Subscript(value=ast.Name(id="Literal"), slice=values):
            literal = ast.literal_eval(values)
            return Literal[literal if isinstance(literal, tuple) else (literal,)]
        case ast.Subscript(value=ast.Name(id="Annotated"), slice=ast.Tuple(elts=[inner, *facts])):
            return Annotated[(_type(inner), *map(_type, facts))]
        case ast.Subscript(value=generic, slice=ast.Tuple(elts=inner)):
            return _type(generic)[tuple(map(_type, inner))]
        case ast.Subscript(value=generic, slice=inner):
            return _type(generic)[_type(inner)]
        case ast.Call(func=called, args=[], keywords=keywords):
            return _type(called)(**{k.arg: ast.literal_eval(k.value) for k in keywords if k.arg})
    raise TypeError(ast.unparse(annotation))


def _asked(kind: str, name: str) -> Iterator[tuple[str, Any, Any]]:
    target = load(kind, name)
    owner = target.__init__ if inspect.isclass(target) else target
    hints = get_type_hints(owner, include_extras=True)
    for argument, parameter in inspect.signature(target).parameters.items():
        default = ... if parameter.default is parameter.empty else parameter.default
        yield argument, functools.partial(_hint, hints, argument), default


def _hint(hints: Mapping[str, Any], argument: str) -> Any:
    hint = hints[argument] if argument in hints else _type(None)
    if get_origin(hint) is Annotated and get_args(hint)[0] is float:
        return Annotated[(Float, *hint.__metadata__)]
    return Float if hint is float else hint


@functools.cache
def _node(module: str, attribute: str) -> Any:
    path = _PACKAGE.parent.joinpath(*module.split(".")).with_suffix(".py")
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return next(node for node in tree.body if getattr(node, "name", None) == attribute)
