"""Settings of CWS's label mapping, and of its ablation on cached features."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from ltpipe.config.backbones import Rule
from ltpipe.config.backbones.cws import MappingInput, SubclassPreset
from ltpipe.config.base import Float
from ltpipe.config.losses import Loss, loss_settings
from ltpipe.config.registry import method
from ltpipe.stage2.core.settings import Retrained

_NAMES = {"kind", "backbones", "label", "description", "mapping"}


class SubclassMapping(Retrained):
    """What the methods share that lead from subclass scores to classes.

    `mapping: mlp` trains a perceptron with `hidden` units, one a subclass unless given, on `input`;
    `marginal` sums the probabilities of each class's subclasses and trains nothing. Loss and `rule`
    act on real classes; the rule also says how samples are drawn.
    """

    hidden: int | None = Field(default=None, ge=1)
    input: MappingInput = "logits"
    loss: Loss = loss_settings("ce")
    rule: Rule = Rule(name="none")
    sampler: Literal["balanced", "shuffle", "effective", "sqrt"] = "shuffle"
    epochs: int = Field(default=30, ge=1)
    weight_decay: Float = Field(default=2e-4, ge=0)

    @model_validator(mode="after")
    def _rule_samples(self) -> SubclassMapping:
        if "sampler" in self.model_fields_set:
            raise ValueError("sampler: rule says how samples are drawn; see rs and drs")
        if self.rule.first_epoch(self.epochs) >= self.epochs:
            raise ValueError(f"rule.start lies beyond the last of {self.epochs} epochs")
        return self


@method("label-mapping", paper="CWS", runs="ltpipe.stage2.cws.label_mapping")
class LabelMapping(SubclassMapping):
    """CWS's second stage: from the subclass scores of a backbone of system cws to classes.

    `mapping: alternating` takes the perceptron that stage one trained beside the backbone. On a
    backbone without subclasses each class is its own.
    """

    kind: Literal["label-mapping"]
    mapping: Literal["mlp", "marginal", "alternating"] = "mlp"

    @model_validator(mode="after")
    def _fits(self) -> LabelMapping:
        useless = sorted(self.model_fields_set - _NAMES)
        if self.mapping != "mlp" and useless:
            raise ValueError(f"mapping: {self.mapping} trains nothing: it has no {useless[0]}")
        return self

    def points(self) -> list[dict[str, float]]:
        return super().points() if self.mapping == "mlp" else [{}]

    def needs_views(self) -> bool:
        return super().needs_views() and self.mapping == "mlp"

    def check_backbone(self, role: str, backbone: Any) -> None:
        super().check_backbone(role, backbone)
        if self.mapping == "alternating" and getattr(backbone, "mapping", "") != "alternating":
            raise ValueError("its stage one trains no mapping; set mapping: alternating there")


@method("cached-splitting", paper="CWS", runs="ltpipe.stage2.cws.cached_splitting")
class CachedSplitting(SubclassMapping):
    """CWS on a frozen backbone: cached features are clustered, a classifier over shells is trained.

    Centres are the exact class means of the plain features. `subclasses` are as in system cws; the
    rule of class counts and spread sees the spread of features. The classifier over subclasses is
    trained first, by the same loss, rule and recipe, and then the mapping on its scores.
    """

    kind: Literal["cached-splitting"]
    subclasses: SubclassPreset | list[int] = "paper-18"
    mapping: Literal["mlp", "marginal"] = "marginal"

    @model_validator(mode="after")
    def _fits(self) -> CachedSplitting:
        if self.mapping == "marginal" and self.model_fields_set & {"hidden", "input"}:
            raise ValueError("hidden and input belong to mapping: mlp")
        if self.mapping == "mlp" and isinstance(self.learning_rate, list):
            raise ValueError("learning_rate: mapping mlp takes one number, for both of its fits")
        return self
