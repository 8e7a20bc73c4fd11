"""Settings of stage one: networks, losses, schedules, and the embeddings that are cached."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from ltpipe.config.base import Float, Settings


class CrossEntropy(Settings):
    name: Literal["ce"]


class Focal(Settings):
    name: Literal["focal"]
    gamma: Float = Field(default=1.0, ge=0)


class BalancedSoftmax(Settings):
    name: Literal["balanced-softmax"]


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
    CrossEntropy | Focal | BalancedSoftmax | ClassBalanced | LDAM | KPS,
    Field(discriminator="name"),
]


class Schedule(Settings):
    """Learning rate by epoch: linear warm-up, then steps of the initial rate, or a cosine to 0."""

    kind: Literal["step", "cosine", "constant"] = "step"
    warmup: int = Field(default=5, ge=0)
    milestones: list[int] = [160, 180]
    factors: list[Float] = [0.1, 0.01]

    @model_validator(mode="after")
    def _paired(self) -> Schedule:
        if self.kind == "step":
            if len(self.milestones) != len(self.factors):
                raise ValueError("milestones and factors must have the same length")
            if self.milestones != sorted(set(self.milestones)):
                raise ValueError("milestones must rise")
        elif {"milestones", "factors"} & self.model_fields_set:
            raise ValueError(f"kind {self.kind!r} has no milestones and factors")
        return self


class FeatureSettings(Settings):
    """What is cached of a trained backbone.

    `views` augmented images of each training sample are kept beside the plain one. `train_bn`
    leaves BatchNorm on batch statistics, as the official FFN code does by mistake.
    """

    views: int = Field(default=0, ge=0)
    view_seed: int = Field(default=0, ge=0)
    view_dtype: Literal["float16", "float32"] = "float16"
    batch_size: int = Field(default=256, ge=1)
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    train_bn: bool = False


class Backbone(Settings):
    """One network trained end to end on the long-tailed images.

    Every loss that takes cosines (`ldam`, `kps`) needs `head: cosine`.
    """

    labels: ClassVar[frozenset[str]] = frozenset({"description", "features"})

    network: str
    head: Literal["linear", "cosine"] = "linear"
    weights: str | None = None
    loss: Loss
    sampler: Literal["shuffle", "balanced", "effective", "sqrt"] = "shuffle"
    mixup: Float = Field(default=0.0, ge=0)
    epochs: int = Field(default=200, ge=1)
    batch_size: int = Field(default=128, ge=2)
    learning_rate: Float = Field(default=0.1, gt=0)
    momentum: Float = Field(default=0.9, ge=0, lt=1)
    nesterov: bool = False
    weight_decay: Float = Field(default=2e-4, ge=0)
    schedule: Schedule = Schedule()
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    compile: bool = False
    features: FeatureSettings = FeatureSettings()
    description: str = ""

    @field_validator("network")
    @classmethod
    def _network_exists(cls, name: str) -> str:
        from ltpipe.registry import check_name

        return check_name("network", name)

    @model_validator(mode="after")
    def _head_fits_loss(self) -> Backbone:
        if isinstance(self.loss, LDAM | KPS) and self.head != "cosine":
            raise ValueError(f"loss {self.loss.name!r} takes cosines: set head: cosine")
        return self

    @model_validator(mode="after")
    def _weights_fit_network(self) -> Backbone:
        from ltpipe.registry import module_of

        torchvision = "ltpipe.models.torchvision_resnet"
        if self.weights is not None and module_of("network", self.network) != torchvision:
            raise ValueError(f"weights: {self.network} starts from fresh weights only")
        return self

    def train_identity(self) -> dict[str, Any]:
        """Return what decides the trained weights."""
        return self.identity()
