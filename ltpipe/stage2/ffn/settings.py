"""Settings of FFN and its ablation."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from ltpipe.config.base import Float, Settings
from ltpipe.config.methods import MethodSettings, different, points
from ltpipe.config.registry import method


class CeAndKps(Settings):
    ce: str
    kps: str


def _shares(w1: float | list[float]) -> float | list[float]:
    if any(not 0 <= value <= 1 for value in different("w1", w1)):
        raise ValueError("w1 must lie between 0 and 1")
    return w1


@method("ffn", paper="FFN", runs="ltpipe.stage2.ffn.job")
class FFN(MethodSettings):
    """FFN: fused features under one cosine classifier, retrained with LDAM.

    `w1` weighs the KPS features and 1 - w1 the CE features. The defaults are the released code's;
    the paper's text trains with a learning rate of 0.1. `views: cached` draws one cached view a
    sample and epoch, `views: plain` uses the plain image only. `online` runs both backbones on
    freshly augmented images in the loop: slow, and the yardstick for the cache. `normalise: false`
    mixes features as they are under a linear classifier, as eq. 14 prints it. `train_bn` and
    `subset_mismatch` repeat two defects of the official code. `best_test` adds the best epoch on
    the test set, under its own protocol tag.
    """

    kind: Literal["ffn"]
    backbones: CeAndKps
    w1: Float | list[Float] = 0.5
    initial: Literal["kps", "random"] = "kps"
    views: Literal["cached", "plain"] = "cached"
    online: bool = False
    normalise: bool = True
    sampler: Literal["balanced", "shuffle", "effective", "sqrt"] = "balanced"
    epochs: int = Field(default=30, ge=1)
    batch_size: int = Field(default=64, ge=1)
    learning_rate: Float = Field(default=0.002, gt=0)
    schedule: Literal["cosine", "constant"] = "cosine"
    momentum: Float = Field(default=0.9, ge=0, lt=1)
    weight_decay: Float = Field(default=2e-4, ge=0)
    max_margin: Float = Field(default=0.5, gt=0)
    scale: Float = Field(default=30.0, gt=0)
    train_bn: bool = False
    subset_mismatch: bool = False
    best_test: bool = False

    _check_w1 = field_validator("w1")(_shares)

    @model_validator(mode="after")
    def _online_fits(self) -> FFN:
        if self.online and self.views == "plain":
            raise ValueError("online: true augments every image; it has no views: plain")
        return self

    def points(self) -> list[dict[str, float]]:
        return points("w1", self.w1)

    def feature_overrides(self, role: str) -> dict[str, Any]:
        return {"train_bn": True} if self.train_bn and role == "ce" else {}

    def stage1_subset_seed(self) -> int | None:
        return 666 if self.subset_mismatch else None

    def protocol(self) -> str:
        tags = ["last"]
        tags += ["train_bn"] if self.train_bn else []
        tags += ["subset_mismatch"] if self.subset_mismatch else []
        return "+".join(tags)

    def needs_images(self) -> bool:
        return self.online

    def needs_views(self) -> bool:
        return self.views == "cached" and not self.online

    def reads_classifier(self, role: str) -> bool:
        return role == "kps" and self.initial == "kps"


@method("logit-fusion", paper="FFN, Fig. 4", runs="ltpipe.stage2.ffn.logit_fusion")
class LogitFusion(MethodSettings):
    """FFN's ablation: the two stage-one classifiers' outputs are mixed and nothing is trained.

    `w1` weighs the KPS branch, as in `ffn`. `space` says what is mixed: `probability` or `logit`.
    """

    kind: Literal["logit-fusion"]
    backbones: CeAndKps
    w1: Float | list[Float] = 0.5
    space: Literal["probability", "logit"] = "probability"

    _check_w1 = field_validator("w1")(_shares)

    def points(self) -> list[dict[str, float]]:
        return points("w1", self.w1)

    def reads_classifier(self, role: str) -> bool:
        return True
