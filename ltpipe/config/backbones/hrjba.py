"""HRJBA: two networks, one for the head classes and one for the tail classes."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from ltpipe.config.backbones.base import BackboneSettings, Rule
from ltpipe.config.base import Float
from ltpipe.config.losses import Loss, check_head, loss_settings
from ltpipe.config.registry import system


@system("hrjba-branch", paper="HRJBA", runs="ltpipe.stage1.hrjba")
class HybridBranch(BackboneSettings):
    """One branch of the hybrid network, trained on the classes of its `group` alone.

    The paper's loss is ``head_weight L_head + (1 - head_weight) L_tail`` over two networks that
    share nothing, so each branch trains alone with its gradient multiplied by its weight; both see
    the same batches of all classes and take their own samples from them. `tail_share` of the
    classes are tail. Class counts in losses and rules are those of the group.
    """

    system: Literal["hrjba-branch"]
    group: Literal["head", "tail"]
    tail_share: Float = Field(default=0.6, gt=0, lt=1)
    head_weight: Float = Field(default=0.8, gt=0, lt=1)
    loss: Loss = loss_settings("ce")
    rule: Rule = Rule(name="none")

    @model_validator(mode="after")
    def _fits(self) -> HybridBranch:
        check_head(self.head, self.loss)
        self.check_start(self.rule)
        if self.rule.name in ("rs", "drs"):
            raise ValueError("rule: both branches take their samples from the same plain batches")
        if self.network.startswith("bbn-"):
            raise ValueError(f"network: {self.network} has two branches, for system bbn")
        return self

    def gradient_weight(self) -> float:
        """Return the weight of this branch's loss."""
        return self.head_weight if self.group == "head" else 1 - self.head_weight

    def covers_all_classes(self) -> bool:
        return False
