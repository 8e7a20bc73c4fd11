"""Settings whose class is found by a registered name: methods, systems, data sets, losses."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, Field, GetCoreSchemaHandler, GetJsonSchemaHandler, TypeAdapter
from pydantic_core import CoreSchema, PydanticCustomError, PydanticKnownError, core_schema

from ltpipe.config.registry import check_name, load, registered
from ltpipe.utils.errors import InputError


@dataclass(frozen=True)
class Choice:
    """Marks a field as one of the registered settings of a kind, told apart by its `key`.

    `Annotated[MethodSettings, Choice("method", "kind")]` takes what any registered method takes,
    one of a plug-in as well. `settings` returns the class of a name. `brief` tells the
    JSON schema the names alone, for settings that hold others of their own kind.
    """

    kind: str
    key: str
    settings: Callable[[str, str], type[BaseModel]] = load
    brief: bool = False

    def validate(self, value: Any) -> BaseModel:
        """Return the settings that `value` describes, defaults filled in."""
        if isinstance(value, BaseModel):
            name = str(getattr(value, self.key, None))
            if name in registered(self.kind) and isinstance(value, self.settings(self.kind, name)):
                return value
        if not isinstance(value, Mapping):
            raise PydanticKnownError("dict_type")
        if self.key not in value:
            raise PydanticCustomError("no_choice", f"the key {self.key} is required")
        try:
            name = check_name(self.kind, str(value[self.key]))
        except InputError as error:
            text = str(error).replace(f"unknown {self.kind}", f"unknown {self.key}", 1)
            raise PydanticCustomError("no_choice", "{text}", {"text": text}) from None
        return self.settings(self.kind, name).model_validate(value)

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self.validate)

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        if self.brief:
            names = {self.key: {"enum": list(registered(self.kind))}}
            return {"type": "object", "required": [self.key], "properties": names}
        members = {self.settings(self.kind, name): None for name in registered(self.kind)}
        union: Any = functools.reduce(operator.or_, members)
        described = TypeAdapter(Annotated[union, Field(discriminator=self.key)])
        return handler(described.core_schema)
