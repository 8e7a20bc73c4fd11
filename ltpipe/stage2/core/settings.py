"""Settings that several methods share; planning reads them, so torch is not imported here."""

from __future__ import annotations

import itertools
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, field_validator

from ltpipe.config.base import Float, Settings
from ltpipe.config.methods import MethodSettings, OneBackbone, decays, points, rates

# By which cosines are multiplied under losses without a scale of their own, as OLTR does.
COSINE_SCALE = 16.0


class Retrained(MethodSettings):
    """What all classifiers that are trained on one backbone's features share.

    `learning_rate` may be a list: all its points are trained together. `per_class` samples are
    drawn in a row for each class that the sampler draws. `views: cached` draws one cached view a
    sample and epoch, `views: plain` uses the plain image only.
    """

    backbones: OneBackbone
    views: Literal["cached", "plain"] = "cached"
    sampler: Literal["balanced", "shuffle", "effective", "sqrt"] = "balanced"
    per_class: int = Field(default=1, ge=1)
    epochs: int = Field(default=10, ge=1)
    batch_size: int = Field(default=128, ge=1)
    learning_rate: Float | list[Float] = 0.1
    schedule: Literal["cosine", "constant"] = "cosine"
    momentum: Float = Field(default=0.9, ge=0, lt=1)
    weight_decay: Float = Field(default=5e-4, ge=0)

    _check_rates = field_validator("learning_rate")(rates)

    def needs_views(self) -> bool:
        return self.views == "cached"

    def points(self) -> list[dict[str, float]]:
        if not isinstance(self.learning_rate, list):
            return [{}]
        return points("learning_rate", self.learning_rate)


class Chosen(MethodSettings):
    """What the methods share that choose the values of swept settings by held-out samples.

    Of a list of values, `select: validation` takes the one of the best mean class accuracy on
    held-out samples, and fits with it on all; `select: none` shows them all. Of several lists every
    combination is tried.
    """

    # The settings that may be lists, in the order in which their combinations are written out.
    swept: ClassVar[tuple[str, ...]] = ()

    select: Literal["validation", "none"] = "validation"

    def grid(self) -> list[dict[str, float]]:
        """Return every combination of the listed values."""
        lists = {name: getattr(self, name) for name in self.swept}
        lists = {name: values for name, values in lists.items() if isinstance(values, list)}
        return [dict(zip(lists, one, strict=True)) for one in itertools.product(*lists.values())]

    def at(self, point: dict[str, float]) -> Self:
        """Return these settings with one value for each list."""
        return self.model_copy(update=point)

    def points(self) -> list[dict[str, float]]:
        return [{}] if self.needs_validation() else self.grid()

    def protocol(self) -> str:
        return "best_val" if self.needs_validation() else "last"

    def needs_validation(self) -> bool:
        return self.select == "validation" and len(self.grid()) > 1


class Tuned(Chosen, Retrained):
    """A retrained classifier whose learning rate and weight decay may be chosen; see `Chosen`."""

    swept: ClassVar[tuple[str, ...]] = ("learning_rate", "weight_decay")

    weight_decay: Float | list[Float] = 5e-4  # type: ignore[assignment]
    select: Literal["validation", "none"] = "none"

    _check_decays = field_validator("weight_decay")(decays)


class OnClassifier(MethodSettings):
    """What the methods share that start from a classifier that is trained already.

    `initial: backbone` is the one of stage one. A network from elsewhere has none over these
    classes: `initial: linear` first fits a linear one to the same features, by cross-entropy.
    """

    backbones: OneBackbone
    initial: Literal["backbone", "linear"] = "backbone"

    def reads_classifier(self, role: str) -> bool:
        return self.initial == "backbone"


class OnTexts(MethodSettings):
    """What the methods share that need the class texts of vision-language towers."""

    backbones: OneBackbone

    def check_backbone(self, role: str, backbone: Any) -> None:
        super().check_backbone(role, backbone)
        if backbone.system != "vision-language":
            raise ValueError("it has no class texts; use a backbone of system: vision-language")


class FlowFilter(Settings):
    """DLSA's filter: a flow with a Gaussian mixture that takes the likeliest samples out.

    The defaults are those released for ImageNet-LT. `likelihood_weight` is meant at 2,048
    dimensions and is scaled to others, since likelihoods grow with them; `spread` is that of the
    clusters' centres (the square root of 5.12 / D unless given), `exponent` q of the class weights
    n ** -q, `share` what a block takes out. `purity_clamp` bounds the purity loss: posteriors below
    it push no further; null, as in the paper and the released code, leaves it without a bound.
    `grad_clip` is the largest norm of a step's gradient; the released code has such a setting and
    applies it before there are gradients.
    `precision` is that of the masked networks' products in training; `auto` takes bfloat16 where
    the machine has units for it and there are at least 256 dimensions. Likelihoods and thresholds
    are computed in float32. `select: pure-clusters` keeps the epoch with the most pure clusters
    among training samples, as the released code does.
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
    purity_clamp: Float | None = Field(default=1e-6, gt=0, lt=1)
    grad_clip: Float | None = Field(default=None, gt=0)
    exponent: Float = Field(default=2.0, ge=0)
    balance_momentum: Float = Field(default=0.7, ge=0, lt=1)
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    select: Literal["last", "pure-clusters"] = "last"
