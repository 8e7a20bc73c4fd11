"""The baselines' ways of training a backbone."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from ltpipe.config.backbones.base import BackboneSettings, Rule
from ltpipe.config.base import Float
from ltpipe.config.losses import Loss, check_head, loss_settings
from ltpipe.config.registry import system


@system("supervised", runs="ltpipe.stage1.supervised")
class Backbone(BackboneSettings):
    """One network trained end to end on the long-tailed images: any loss under any rule.

    Losses that take cosines (`ldam`, `kps`) need `head: cosine`.
    """

    system: Literal["supervised"] = "supervised"
    loss: Loss
    rule: Rule = Rule(name="none")
    mixup: Float = Field(default=0.0, ge=0)

    @model_validator(mode="after")
    def _fits(self) -> Backbone:
        check_head(self.head, self.loss)
        self.check_start(self.rule)
        return self


@system("bbn", paper="Zhou et al., CVPR 2020", runs="ltpipe.stage1.bbn")
class BBN(BackboneSettings):
    """Two branches on a shared trunk, one fed uniformly, one reversely, mixed cumulatively.

    `network` is one with two branches, such as bbn-resnet32. `drop_last` leaves out an epoch's
    last batch where it is short, as the released code does.
    """

    system: Literal["bbn"]
    loss: Loss = loss_settings("ce")
    drop_last: bool = False

    @model_validator(mode="after")
    def _fits(self) -> BBN:
        if not self.network.startswith("bbn-"):
            raise ValueError(f"network: {self.network} has one branch; take bbn-resnet32")
        if self.head != "linear":
            raise ValueError("head: BBN's classifier is linear")
        check_head(self.head, self.loss)
        return self


@system("paco", paper="Cui et al., ICCV 2021", runs="ltpipe.stage1.paco")
class PaCo(BackboneSettings):
    """Parametric contrastive learning: class centres beside keys of a momentum encoder.

    `centre_weight` is the paper's beta on the true centre, `alpha` weighs each sample of the same
    class. `queue` keys are kept; `projection` is the width of the contrasted vectors;
    `centre_temperature` divides the centres' logits. `views` says how an image's two views are
    made: both by the `dataset`'s own augmentation, or as the released code does on `cifar` or
    `imagenet` (ltpipe.data.two_views).
    """

    system: Literal["paco"]
    loss: None = None
    alpha: Float = Field(default=0.01, ge=0)
    centre_weight: Float = Field(default=1.0, gt=0)
    temperature: Float = Field(default=0.05, gt=0)
    centre_temperature: Float = Field(default=1.0, gt=0)
    queue: int = Field(default=1024, ge=0)
    projection: int = Field(default=32, ge=1)
    encoder_momentum: Float = Field(default=0.999, ge=0, lt=1)
    views: Literal["dataset", "cifar", "imagenet"] = "dataset"

    @model_validator(mode="after")
    def _fits(self) -> PaCo:
        if self.head != "linear":
            raise ValueError("head: PaCo's centres are those of a linear classifier")
        return self
