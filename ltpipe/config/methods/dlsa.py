"""DLSA: its filters and the classifiers embedded in its cascade."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ltpipe.config.base import Float, Settings
from ltpipe.config.methods.base import MethodSettings, OneBackbone
from ltpipe.config.registry import method


class FlowFilter(Settings):
    """DLSA's filter: a flow with a Gaussian mixture that takes the likeliest samples out.

    The defaults are those released for ImageNet-LT. `likelihood_weight` is meant at 2,048
    dimensions and is scaled to others, since likelihoods grow with them; `spread` is that of the
    clusters' centres (the square root of 5.12 / D unless given), `exponent` q of the class weights
    n ** -q, `share` what a block takes out. `precision` is that of the masked networks' products
    in training; `auto` takes bfloat16 where the machine has units for it and there are at least
    256 dimensions. Likelihoods and thresholds are computed in float32. `select: pure-clusters`
    keeps the epoch with the most pure clusters among training samples, as the released code does.
    """

    clusters: int = Field(default=500, ge=1)
    layers: int = Field(default=2, ge=1)
    hidden: int | None = Field(default=None, ge=1)
    batch_norm: bool = True
    spread: Float | None = Field(default=None, gt=0)
    share: Float = Field(default=0.3, gt=0, lt=1)
    epochs: int = Field(default=50, ge=1)
    batch_size: int = Field(default=1024, ge=2)
    learning_rate: Float = Field(default=0.2, gt=0)
    likelihood_weight: Float = Field(default=2.0, ge=0)
    balance_weight: Float = Field(default=1.0, ge=0)
    purity_weight: Float = Field(default=0.02, ge=0)
    exponent: Float = Field(default=2.0, ge=0)
    balance_momentum: Float = Field(default=0.7, ge=0, lt=1)
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    select: Literal["last", "pure-clusters"] = "last"


@method("dlsa", paper="DLSA", runs="ltpipe.stage2.dlsa.job")
class DLSA(MethodSettings):
    """DLSA: a cascade of filters, a cluster-aided classifier for what each takes out.

    `classifier` is what is trained on each group; `blocks: 0` trains it on all samples, without
    filters, which is what DLSA is compared with. `use_latent: false` passes the feature twice
    instead of the flow's latent vector, as the released code does by mistake. `prior: all` lets the
    classifier of what no block takes out balance by the counts of the whole training set, as that
    code does, and not by those of its own samples. `initial: backbone` starts the feature's part of
    linear classifiers from stage one's. `best_test` adds, under its own protocol tag, what each
    classifier's best epoch of every fifth on its own test samples gives.
    """

    stackable = False

    kind: Literal["dlsa"]
    backbones: OneBackbone
    filter: FlowFilter = FlowFilter()
    blocks: int = Field(default=3, ge=0, le=4)
    classifier: Literal["balanced-softmax", "class-balanced-sampling", "cosine", "m2m", "ride"] = (
        "balanced-softmax"
    )
    use_latent: bool = True
    prior: Literal["group", "all"] = "group"
    initial: Literal["random", "backbone"] = "random"
    best_test: bool = False
    epochs: int = Field(default=150, ge=1)
    batch_size: int = Field(default=128, ge=1)
    learning_rate: Float = Field(default=0.01, gt=0)
    schedule: Literal["cosine", "constant"] = "constant"
    momentum: Float = Field(default=0.0, ge=0, lt=1)
    weight_decay: Float = Field(default=0.0, ge=0)

    def filters(self) -> tuple[FlowFilter, int] | None:
        return (self.filter, self.blocks) if self.blocks else None

    def reads_classifier(self, role: str) -> bool:
        return self.initial == "backbone" or self.classifier == "m2m"
