"""CWS: classes split into subclasses while the backbone trains."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from ltpipe.config.backbones.base import BackboneSettings, Rule
from ltpipe.config.base import Float, Settings
from ltpipe.config.losses import Loss, check_head
from ltpipe.config.registry import system

# The lists themselves are code of the system: ltpipe.stage1.cws.subclasses.
SubclassPreset = Literal[
    "paper-18", "paper-39", "paper-99", "paper-167", "counts", "counts-and-spread"
]
MappingInput = Literal["logits", "softmax", "log-softmax"]


class Mapper(Settings):
    """The perceptron from subclass scores to classes: `hidden` units, one a subclass unless given.

    `input` is what it sees of the subclass logits; `learning_rate` is that of the backbone unless
    given.
    """

    hidden: int | None = Field(default=None, ge=1)
    input: MappingInput = "logits"
    learning_rate: Float | None = Field(default=None, gt=0)


@system("cws", paper="CWS", runs="ltpipe.stage1.cws.job")
class CWS(BackboneSettings):
    """One network over subclasses: shells around each class's moving centre, relabelled a batch.

    `subclasses` says how many each class has: a list, the largest class first, or a preset's name;
    each entry of a list shorter than the classes stands for as many ranks as fit. `centre` and
    `alpha` are the moving average: `smooth` keeps alpha of the old centre, `printed` takes alpha of
    the new mean, as the paper prints it. `scope` is where a class's largest distance is taken:
    over its samples in the batch, as a moving maximum, or over the whole set before each epoch.
    `unit` measures on features of unit length. `empty: fatal` says of a run that leaves a subclass
    without samples in its last epoch that it did not converge. `mapping: alternating` trains the
    perceptron from subclasses to classes one epoch after each of the backbone's, `cached` leaves it
    to stage two.
    """

    system: Literal["cws"]
    loss: Loss
    rule: Rule = Rule(name="none")
    subclasses: SubclassPreset | list[int] = "paper-18"
    centre: Literal["smooth", "printed"] = "smooth"
    alpha: Float = Field(default=0.99, ge=0, le=1)
    scope: Literal["batch", "running-max", "epoch"] = "batch"
    unit: bool = False
    empty: Literal["kept", "fatal"] = "kept"
    mapping: Literal["cached", "alternating"] = "cached"
    mapper: Mapper = Mapper()

    @field_validator("subclasses")
    @classmethod
    def _at_least_one(cls, subclasses: str | list[int]) -> str | list[int]:
        if isinstance(subclasses, list) and (not subclasses or min(subclasses) < 1):
            raise ValueError("subclasses: each class has at least one")
        return subclasses

    @model_validator(mode="after")
    def _fits(self) -> CWS:
        check_head(self.head, self.loss)
        self.check_start(self.rule)
        if self.network.startswith("bbn-"):
            raise ValueError(f"network: {self.network} has two branches, for system bbn")
        if self.head == "cosine" and not self.loss.takes_cosines:
            raise ValueError(f"head: loss {self.loss.name!r} has no scale for cosines; set linear")
        if self.scope == "epoch" and self.model_fields_set & {"centre", "alpha"}:
            raise ValueError("scope: epoch takes exact class means: it has no centre and alpha")
        if self.mapping == "cached" and "mapper" in self.model_fields_set:
            raise ValueError("mapper belongs to mapping: alternating")
        return self

    def splits_classes(self) -> bool:
        return True
