"""The one reader of experiment files and of the catalogue: YAML of safe types, within limits.

A file may come from anybody, so limits hold before memory and time are taken: of its size, of how
deep it nests, and of how many values it has with its aliases written out.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from ltpipe.utils.errors import InputError
from ltpipe.utils.io import open_regular, printable

MAX_BYTES = 1_000_000
MAX_DEPTH = 50
MAX_VALUES = 100_000
# libyaml's parser, which every wheel of PyYAML brings, is ten times as fast.
_Safe: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _PlainKeys(_Safe):
    """A safe loader that refuses a key that stands twice, or is no text."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            line = f"line {key_node.start_mark.line + 1}: key {str(key)[:60]!r}"
            if not isinstance(key, str):
                raise InputError(f"{line} is no text; write it in quotes")
            if key in seen:
                raise InputError(f"{line} stands twice; remove one")
            seen.add(key)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping.

    Raises:
        InputError: the file is missing or no regular file, is not UTF-8 or not YAML, exceeds a
            limit, has a key twice, or one that is no text; names the file.
    """
    shown = printable(path)
    try:
        with open_regular(path) as handle:
            data = handle.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise InputError(f"{shown}: no such file") from None
    except OSError as error:
        raise InputError(f"{shown[:200]}: can't be read ({error.strerror})") from None
    try:
        if len(data) > MAX_BYTES:
            raise InputError(f"longer than {MAX_BYTES:,} bytes; is it an experiment file?")
        text = data.decode("utf-8-sig")
        _check_size(text)
        values = yaml.load(text, Loader=_PlainKeys)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(f"{shown}: not UTF-8 in line {line}; save it as UTF-8") from None
    except InputError as error:
        raise InputError(f"{shown}: {error}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise InputError(f"{shown}: not YAML: {' '.join(str(error).split())[:300]}") from None
    if not isinstance(values, dict):
        raise InputError(f"{shown}: must be a mapping of keys to values")
    return values


def _check_size(text: str) -> None:
    """Raise InputError for what is too deep or too much, before any of it is built."""
    # Of each collection that is open: its anchor, and its values so far.
    opened: list[tuple[str | None, int]] = [(None, 0)]
    sizes: dict[str | None, int | None] = {}
    events: Iterator[Any] = yaml.parse(text, Loader=_Safe)
    for event in events:
        where = f"line {event.start_mark.line + 1}"
        if isinstance(event, yaml.CollectionStartEvent):
            opened.append((event.anchor, 1))
            # An alias of what is open would lead back to itself.
            if event.anchor:
                sizes[event.anchor] = None
            if len(opened) > MAX_DEPTH:
                raise InputError(f"{where}: more than {MAX_DEPTH} levels deep")
            continue
        if isinstance(event, yaml.CollectionEndEvent):
            anchor, size = opened.pop()
        elif isinstance(event, yaml.ScalarEvent):
            anchor, size = event.anchor, 1
            if "\0" in event.value:
                raise InputError(f"{where}: a text with the character \\0; take it out")
        elif isinstance(event, yaml.AliasEvent):
            anchor, known = None, sizes.get(event.anchor, 1)
            if known is None:
                raise InputError(f"{where}: *{event.anchor} leads back to itself")
            size = known
        else:
            continue
        if anchor:
            sizes[anchor] = size
        opened[-1] = opened[-1][0], opened[-1][1] + size
        if opened[-1][1] > MAX_VALUES:
            raise InputError(f"{where}: more than {MAX_VALUES:,} values, with aliases written out")
