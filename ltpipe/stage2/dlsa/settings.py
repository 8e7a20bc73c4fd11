"""Settings of DLSA."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ltpipe.config.base import Float
from ltpipe.config.methods import MethodSettings, OneBackbone
from ltpipe.config.registry import method
from ltpipe.stage2.core.settings import FlowFilter


@method("dlsa", paper="DLSA", runs="ltpipe.stage2.dlsa.job")
class DLSA(MethodSettings):
    """DLSA: a cascade of filters, a cluster-aided classifier for what each takes out.

    `classifier` is what is trained on each group; `blocks: 0` trains it on all samples, without
    filters, which is what DLSA is compared with. `form` says of which layers its logits are the
    sum: the paper's FC[x, z] + FC[P], or the released code's FC[x] + FC[z, P]; cosines differ by
    it, linear maps in how fast they learn. `use_latent: false` passes the feature twice instead of
    the flow's latent vector, as the released code does by mistake. `prior: all` lets the classifier
    of what no block takes out balance by the counts of the whole training set, as that code does,
    and not by those of its own samples. `initial: backbone` starts what a classifier makes of the
    feature from stage one's classifier; RIDE's experts start around it. `best_test` adds, under its
    own protocol tag, what each classifier's best epoch of every fifth on its own test samples
    gives.
    """

    stackable = False

    kind: Literal["dlsa"]
    backbones: OneBackbone
    filter: FlowFilter = FlowFilter()
    blocks: int = Field(default=3, ge=0, le=4)
    classifier: Literal["balanced-softmax", "class-balanced-sampling", "cosine", "m2m", "ride"] = (
        "balanced-softmax"
    )
    form: Literal["paper", "released"] = "paper"
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
