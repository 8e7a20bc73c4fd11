"""Settings of the losses: the arguments of their constructors, and the facts they carry."""

from __future__ import annotations

import functools
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import create_model, model_validator

from ltpipe.config.base import Settings
from ltpipe.config.choices import Choice
from ltpipe.config.registry import Registration, find
from ltpipe.config.signatures import arguments, fact

# What a loss is given by whoever builds it.
_GIVEN = ("class_counts", "weight")


class LossSettings(Settings):
    """What the settings of all losses share; ltpipe.losses.base.Loss explains the facts."""

    takes_cosines: ClassVar[bool] = False
    at_most: ClassVar[tuple[tuple[str, str], ...]] = ()

    name: str

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        for low, high in self.at_most:
            if getattr(self, low) > getattr(self, high):
                raise ValueError(f"{low} must not exceed {high}")
        return self


def loss_class(kind: str, name: str) -> type[LossSettings]:
    """Return the class of the settings of a registered loss."""
    return _loss_class(name, find(kind, name))


@functools.cache
def _loss_class(name: str, entry: Registration) -> type[LossSettings]:
    fields: dict[str, Any] = {"name": (Literal[name], ...)}
    for argument, setting in arguments("loss", name, _GIVEN).items():
        fields[argument] = (setting.type, setting.default)
    module = entry.module if entry.file else __name__
    made = create_model(entry.attribute, __base__=LossSettings, __module__=module, **fields)
    made.takes_cosines = fact("loss", name, "takes_cosines", False)
    made.at_most = fact("loss", name, "at_most", ())
    return made


def loss_settings(name: str, **values: Any) -> LossSettings:
    """Return the settings of the loss called `name`, defaults filled in."""
    return loss_class("loss", name)(name=name, **values)


Loss = Annotated[LossSettings, Choice("loss", "name", loss_class)]


def check_head(head: str, loss: LossSettings) -> None:
    """Refuse a loss that takes cosines on another head than a cosine one."""
    if loss.takes_cosines and head != "cosine":
        raise ValueError(f"loss {loss.name!r} takes cosines: set head: cosine")
