"""Settings of HRJBA, and of its fair comparator."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from ltpipe.config.base import Float, Settings
from ltpipe.config.losses import Loss, loss_settings
from ltpipe.config.methods import MethodSettings, OneBackbone
from ltpipe.config.registry import method
from ltpipe.stage2.core.settings import FlowFilter, Retrained


class Branches(Settings):
    head: str
    tail: str


@method("hrjba", paper="HRJBA", runs="ltpipe.stage2.hrjba.job")
class HRJBA(Retrained):
    """The head branch and the tail branch joined to one classifier of all classes.

    `routing` says how a test sample finds its branch. `oracle`: it is known to be of a head or a
    tail class, as the paper assumes. Honest: `concat` takes the largest of both branches' logits;
    `temperature` their probabilities, each branch's temperature fitted on held-out samples and its
    share `prior` even or that of its classes; `energy` the branch of higher free energy, with a
    bias fitted there too; `gate` a logistic regression on both branches' features (`soft` mixes by
    its probability instead of choosing); `flow` DLSA's filter on the head branch's features, which
    takes tail samples out; `retrain` trains a classifier of all classes on both branches' features.
    `tail_share` is that of the branches. The recipe is that of `gate` and `retrain`, `loss` that of
    `retrain`.
    """

    kind: Literal["hrjba"]
    backbones: Branches  # type: ignore[assignment]
    routing: Literal["oracle", "concat", "temperature", "energy", "gate", "flow", "retrain"] = (
        "retrain"
    )
    tail_share: Float = Field(default=0.6, gt=0, lt=1)
    prior: Literal["even", "class-share"] = "even"
    soft: bool = False
    loss: Loss = loss_settings("ce")
    filter: FlowFilter = FlowFilter()

    @model_validator(mode="after")
    def _fits(self) -> HRJBA:
        for name, routings in (
            ("prior", ("temperature",)),
            ("soft", ("gate",)),
            ("loss", ("retrain",)),
            ("filter", ("flow",)),
        ):
            if name in self.model_fields_set and self.routing not in routings:
                raise ValueError(f"{name} belongs to routing: {' or '.join(routings)}")
        if self.loss.takes_cosines:
            raise ValueError(f"loss {self.loss.name!r} takes cosines; the classifier is linear")
        if isinstance(self.learning_rate, list) and self.routing != "retrain":
            raise ValueError("learning_rate: a list belongs to routing: retrain")
        return self

    def protocol(self) -> str:
        if self.routing == "oracle":
            return "oracle"
        return "best_val" if self.needs_validation() else "last"

    def needs_validation(self) -> bool:
        return self.routing in ("temperature", "energy")

    def needs_views(self) -> bool:
        return super().needs_views() and self.routing in ("gate", "retrain")

    def filters(self) -> tuple[FlowFilter, int] | None:
        return (self.filter, 1) if self.routing == "flow" else None

    def filter_role(self) -> str:
        # There, classes that the branch never saw lie apart from those it knows.
        return "head"

    def check_backbone(self, role: str, backbone: Any) -> None:
        self.check_views(backbone)
        if backbone.covers_all_classes():
            raise ValueError("it is no branch of the hybrid network; use system: hrjba-branch")
        if backbone.group != role:
            raise ValueError(f"it was trained on the {backbone.group} classes")
        if backbone.tail_share != self.tail_share:
            raise ValueError(
                f"its tail_share is {backbone.tail_share:g}, the method's {self.tail_share:g}"
            )


@method("oracle-mask", paper="HRJBA", runs="ltpipe.stage2.hrjba.oracle_mask")
class OracleMask(MethodSettings):
    """Stage one's classifier, told whether a sample is of a head or a tail class.

    What the paper's oracle gives to any classifier: the fair comparator of `hrjba` under it.
    """

    stackable = False

    kind: Literal["oracle-mask"]
    backbones: OneBackbone
    tail_share: Float = Field(default=0.6, gt=0, lt=1)

    def protocol(self) -> str:
        return "oracle"

    def reads_classifier(self, role: str) -> bool:
        return True
