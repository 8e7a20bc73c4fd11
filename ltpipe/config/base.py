"""What all settings have in common: strict types, unknown keys refused, one canonical text."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails, PydanticCustomError

from ltpipe.utils.errors import InputError, nearest

_SCIENTIFIC = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)[eE][+-]?\d+")


def _scientific(value: Any) -> Any:
    """YAML 1.1 reads 1e-3 as text; whoever wrote it meant a number."""
    if isinstance(value, str) and _SCIENTIFIC.fullmatch(value):
        return float(value)
    return value


Float = Annotated[float, BeforeValidator(_scientific)]


MAX_NAME = 100
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
_BRACES = re.compile(r"\{\{|\}\}|\{(\w+)(?::\.(\d)([fg]))?\}|[{}]")


def check_name(name: str) -> str:
    """Return a name that may become part of a path.

    Raises:
        ValueError: it may not; says what may.
    """
    if not _NAME.fullmatch(name) or len(name) > MAX_NAME:
        raise ValueError(
            f"use letters, digits, '.', '_', '+' and '-', at most {MAX_NAME}: it names a folder "
            "or a file"
        )
    return name


def _check_seeds(seeds: list[int]) -> list[int]:
    if len(set(seeds)) != len(seeds):
        raise ValueError("seeds must be different numbers")
    return seeds


# Names of experiments, data sets, backbones, methods, tables and figures.
Name = Annotated[str, AfterValidator(check_name)]
Seeds = Annotated[
    list[Annotated[int, Field(ge=0, lt=2**31)]],
    Field(min_length=1, max_length=1000),
    AfterValidator(_check_seeds),
]


def fill_braces(text: str, values: Mapping[str, Any]) -> str:
    """Return `text` with `{name}`, or `{name:.2f}` of a number, filled in, `{{` being a brace.

    Raises:
        KeyError: braces hold anything else; attributes, items and widths are not looked up.
    """

    def filled(found: re.Match[str]) -> str:
        whole, name, digits, kind = found[0], found[1], found[2], found[3]
        if whole in ("{{", "}}"):
            return whole[0]
        if name not in values or (digits and not isinstance(values[name], int | float)):
            raise KeyError(whole)
        return format(values[name], f".{digits}{kind}") if digits else str(values[name])

    return _BRACES.sub(filled, text)


class Settings(BaseModel):
    """Base of every group of settings.

    `labels` names the fields that only people read. They are no part of an artifact's identity.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)
    labels: ClassVar[frozenset[str]] = frozenset()

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, data: Any) -> Any:
        if isinstance(data, Mapping):
            known = {field.alias or name for name, field in cls.model_fields.items()}
            for key in data:
                if key not in known:
                    raise PydanticCustomError(
                        "unknown_key",
                        "unknown key {key}{hint}; known here: {known}",
                        {
                            "key": _short(key),
                            "hint": nearest(str(key), known),
                            "known": ", ".join(sorted(known)),
                        },
                    )
        return data

    def locations(self) -> frozenset[str]:
        """Return the fields that say only where something lies; its contents count instead."""
        return frozenset()

    def located(self) -> dict[str, Any]:
        """Return the values of `locations`, as a job needs them beside the identity."""
        return self.model_dump(mode="json", exclude_defaults=True, include=set(self.locations()))

    def identity(self) -> dict[str, Any]:
        """Return what defines the artifact: no labels, no setting left at its default.

        Leaving defaults out lets a later version add a setting without renaming every artifact.
        In return a default, once released, never changes; tests/config/test_defaults.py holds
        them.
        """
        return self.model_dump(
            mode="json",
            by_alias=True,
            exclude_defaults=True,
            exclude=set(self.labels | self.locations()),
        )


def canonical_json(value: Any) -> str:
    """Return the one JSON text of `value`: sorted keys, no spaces, no NaN."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )


def digest(value: Any) -> str:
    """Return the first 10 hex digits of the SHA-256 of the canonical JSON of `value`."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:10]


def merge(base: Mapping[str, Any], override: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with `override` laid over it, mappings merged key by key.

    A mapping whose `name`, `kind` or `source` differs from the base's replaces it as a whole:
    the settings of one loss mean nothing to another.
    """
    merged = dict(base)
    for key, value in override.items():
        old = merged.get(key)
        if (
            isinstance(old, Mapping)
            and isinstance(value, Mapping)
            and all(value.get(tag, old.get(tag)) == old.get(tag) for tag in ("name", "kind"))
        ):
            merged[key] = merge(old, value)
        else:
            merged[key] = value
    return merged


def explain(error: ValidationError, where: str) -> InputError:
    """Turn pydantic's report into one line: the key's path, what is wrong, how many more."""
    errors = error.errors()
    first = errors[0]
    path = where
    for part in first["loc"]:
        if isinstance(part, int):
            path += f"[{part}]"
        elif not _is_union_tag(part):
            part = part if len(part) <= MAX_NAME else f"{part[:MAX_NAME]}..."
            path += f".{part}" if path else part
    message = _explain_one(first)
    if len(errors) > 1:
        message += f" (and {len(errors) - 1} more errors)"
    return InputError(f"{path or 'at the top'}: {message}")


def _explain_one(error: ErrorDetails) -> str:
    message, found, context = str(error["msg"]), error["input"], error.get("ctx", {})
    if error["type"] == "missing":
        return "this key is required"
    if error["type"] in ("unknown_key", "no_choice", "value_error"):
        return message.removeprefix("Value error, ")
    if error["type"] == "union_tag_invalid":
        key = context["discriminator"].strip("'")
        choices = [choice.strip(" '") for choice in context["expected_tags"].split(",")]
        hint = nearest(context["tag"], choices)
        return f"unknown {key} {context['tag']!r}{hint}; known: {', '.join(choices)}"
    if error["type"] == "union_tag_not_found":
        return f"the key {context['discriminator']} is required"
    if error["type"] == "literal_error":
        choices = re.findall(r"'([^']*)'", context["expected"])
        return f"unknown value {found!r}{nearest(str(found), choices)}; known: {', '.join(choices)}"
    return f"{message[0].lower()}{message[1:]} (found {_short(found)})"


def _is_union_tag(part: str | int) -> bool:
    """Pydantic adds the member of a union that it tried to the path; readers don't know it."""
    return isinstance(part, str) and (
        part in ("float", "int", "str", "bool", "[key]") or part.startswith(("function-", "list["))
    )


def _short(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:
        # Python writes no numbers of thousands of digits.
        return "a number of too many digits"
    return text if len(text) <= 60 else text[:57] + "..."
