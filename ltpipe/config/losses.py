"""Settings of the losses."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from ltpipe.config.base import Float, Settings


class CrossEntropy(Settings):
    name: Literal["ce"]


class Focal(Settings):
    name: Literal["focal"]
    gamma: Float = Field(default=1.0, ge=0)
    ldam_compat: bool = False


class BalancedSoftmax(Settings):
    name: Literal["balanced-softmax"]


class LogitAdjustment(Settings):
    name: Literal["logit-adjustment"]
    tau: Float = Field(default=1.0, ge=0)


class LabelSmoothing(Settings):
    name: Literal["label-smoothing"]
    smoothing: Float = Field(default=0.1, ge=0, lt=1)


class SmoothingRange(Settings):
    """MiSLAS's smoothing: `head` for the largest class, falling to `tail` for the smallest."""

    head: Float = Field(default=0.3, ge=0, lt=1)
    tail: Float = Field(default=0.0, ge=0, lt=1)
    shape: Literal["concave", "linear", "convex"] = "concave"

    @model_validator(mode="after")
    def _falls(self) -> Self:
        if self.tail > self.head:
            raise ValueError("tail must not exceed head")
        return self


class LabelAwareSmoothing(SmoothingRange):
    """Cross-entropy against labels smoothed by the size of their class."""

    name: Literal["label-aware-smoothing"]


class ClassBalanced(Settings):
    name: Literal["class-balanced"]
    beta: Float = Field(default=0.9999, ge=0, lt=1)


class LDAM(Settings):
    name: Literal["ldam"]
    max_margin: Float = Field(default=0.5, gt=0)
    scale: Float = Field(default=30.0, gt=0)


class KPS(Settings):
    """`adjust_from` is the 0-based epoch from which gradients are adjusted; None: never."""

    name: Literal["kps"]
    max_margin: Float = Field(default=0.2, gt=0)
    scale: Float = Field(default=15.0, gt=0)
    adjust_from: int | None = Field(default=None, ge=0)


Loss = Annotated[
    CrossEntropy
    | Focal
    | BalancedSoftmax
    | LogitAdjustment
    | LabelSmoothing
    | LabelAwareSmoothing
    | ClassBalanced
    | LDAM
    | KPS,
    Field(discriminator="name"),
]
COSINE_LOSSES = (LDAM, KPS)


def check_head(head: str, loss: Any) -> None:
    if isinstance(loss, COSINE_LOSSES) and head != "cosine":
        raise ValueError(f"loss {loss.name!r} takes cosines: set head: cosine")
