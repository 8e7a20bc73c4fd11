"""Classifiers on one backbone's features: stage one's own, retrained, rescaled, adjusted."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from ltpipe.config.base import Float, Settings
from ltpipe.config.losses import Loss, check_head, loss_settings
from ltpipe.config.methods.base import MethodSettings, OneBackbone, exponents, points, rates
from ltpipe.config.registry import method


@method(
    "own-classifier",
    paper="joint training in Kang et al., ICLR 2020",
    runs="ltpipe.stage2.simple.own_classifier",
)
class OwnClassifier(MethodSettings):
    """The classifier that stage one trained, as it stands."""

    kind: Literal["own-classifier"]
    backbones: OneBackbone

    def reads_classifier(self, role: str) -> bool:
        return True


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


@method("classifier", paper="Kang et al., ICLR 2020", runs="ltpipe.stage2.simple.classifier")
class Classifier(Retrained):
    """A classifier retrained on frozen features: any head, loss and sampler.

    With its defaults it is cRT. `weights` are class weights in the loss. A cosine head sees
    features of unit length, or squashed ones (`rows: squashed`), and its cosines are multiplied by
    `scale` (16 unless given) except under the losses that have a scale of their own.
    """

    kind: Literal["classifier"]
    head: Literal["linear", "cosine"] = "linear"
    loss: Loss = loss_settings("ce")
    weights: Literal["none", "inverse", "effective"] = "none"
    initial: Literal["random", "backbone"] = "random"
    rows: Literal["unit", "squashed"] | None = None
    scale: Float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _fits(self) -> Classifier:
        own_scale = self.loss.takes_cosines
        if own_scale and self.head != "cosine":
            raise ValueError(f"loss {self.loss.name!r} takes cosines: set head: cosine")
        if self.head == "linear" and (self.rows is not None or self.scale is not None):
            raise ValueError("rows and scale belong to head: cosine")
        if own_scale and self.scale is not None:
            raise ValueError(f"scale: loss {self.loss.name!r} has its own")
        return self

    def reads_classifier(self, role: str) -> bool:
        return self.initial == "backbone"


@method("lws", paper="Kang et al., ICLR 2020", runs="ltpipe.stage2.simple.lws")
class LWS(Retrained):
    """Learnable weight scaling: the stage-one classifier with one learned factor a class."""

    kind: Literal["lws"]
    loss: Loss = loss_settings("ce")
    epochs: int = Field(default=5, ge=1)

    @model_validator(mode="after")
    def _fits(self) -> LWS:
        if self.loss.takes_cosines:
            raise ValueError(f"loss {self.loss.name!r} takes cosines, which have no factors")
        return self

    def reads_classifier(self, role: str) -> bool:
        return True


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


@method("mislas", paper="Zhong et al., CVPR 2021", runs="ltpipe.stage2.simple.mislas")
class MiSLAS(SmoothingRange, Retrained):
    """MiSLAS's second stage: label-aware smoothing, factors a class, a slowly moving classifier.

    `classifier_factor` multiplies the learning rate of the classifier itself.
    """

    kind: Literal["mislas"]
    classifier_factor: Float = Field(default=0.2, ge=0)

    def reads_classifier(self, role: str) -> bool:
        return True


@method("m2m", paper="Kim et al., CVPR 2020", runs="ltpipe.stage2.simple.m2m")
class M2M(Retrained):
    """Major-to-minor translation of features.

    `beta` shapes the choice of seeds, `penalty` weighs the seed class's logit, `steps` of
    `step_size` times the mean feature norm are taken from a start disturbed by `noise` times a
    step, and a sample is kept that the stage-one classifier is sure of by `confidence`.
    """

    kind: Literal["m2m"]
    initial: Literal["random", "backbone"] = "backbone"
    beta: Float = Field(default=0.999, ge=0, lt=1)
    penalty: Float = Field(default=0.5, ge=0)
    steps: int = Field(default=10, ge=1)
    step_size: Float = Field(default=0.1, gt=0)
    noise: Float = Field(default=0.5, ge=0)
    confidence: Float = Field(default=0.9, ge=0, lt=1)

    def reads_classifier(self, role: str) -> bool:
        return True


@method("ride", paper="Wang et al., ICLR 2021", runs="ltpipe.stage2.simple.ride")
class RIDE(Retrained):
    """Several experts on the same features, kept apart by a diversity term.

    `diversity` weighs the divergence from the experts' mean (negative: apart), `reweight_from`
    is the 0-based epoch from which class weights and class-wise temperatures act (four fifths of
    all epochs unless given), `temperature_share` how far temperatures follow class counts.
    """

    kind: Literal["ride"]
    experts: int = Field(default=2, ge=1)
    head: Literal["linear", "cosine"] = "cosine"
    loss: Loss = loss_settings("ldam")
    scale: Float = Field(default=30.0, gt=0)
    diversity: Float = -0.2
    temperature_share: Float = Field(default=0.05, ge=0, le=1)
    reweight_from: int | None = Field(default=None, ge=0)
    sampler: Literal["balanced", "shuffle", "effective", "sqrt"] = "shuffle"

    @model_validator(mode="after")
    def _fits(self) -> RIDE:
        if self.loss.name not in ("ce", "ldam"):
            raise ValueError(f"loss: experts are trained by ce or ldam, not by {self.loss.name}")
        check_head(self.head, self.loss)
        if self.head == "linear" and "scale" in self.model_fields_set:
            raise ValueError("scale belongs to head: cosine")
        return self


@method("tau-norm", paper="Kang et al., ICLR 2020", runs="ltpipe.stage2.simple.tau_norm")
class TauNorm(MethodSettings):
    """The stage-one classifier with rows divided by their norm to the power of tau.

    `select: validation` takes the tau of `tau` that is best on held-out samples, `select: none`
    shows them all.
    """

    stackable = False

    kind: Literal["tau-norm"]
    backbones: OneBackbone
    tau: Float | list[Float] = [round(0.1 * step, 1) for step in range(21)]
    select: Literal["validation", "none"] = "validation"

    _check_tau = field_validator("tau")(exponents)

    def points(self) -> list[dict[str, float]]:
        return [{}] if self.needs_validation() else points("tau", self.tau)

    def protocol(self) -> str:
        return "best_val" if self.needs_validation() else "last"

    def needs_validation(self) -> bool:
        return self.select == "validation"

    def reads_classifier(self, role: str) -> bool:
        return True


@method(
    "logit-adjusted", paper="Menon et al., ICLR 2021", runs="ltpipe.stage2.simple.logit_adjusted"
)
class LogitAdjusted(MethodSettings):
    """The stage-one classifier's logits less tau times the log prior; nothing is trained."""

    kind: Literal["logit-adjusted"]
    backbones: OneBackbone
    tau: Float | list[Float] = 1.0

    _check_tau = field_validator("tau")(exponents)

    def points(self) -> list[dict[str, float]]:
        return points("tau", self.tau) if isinstance(self.tau, list) else [{}]

    def reads_classifier(self, role: str) -> bool:
        return True


@method("ncm", paper="Kang et al., ICLR 2020", runs="ltpipe.stage2.simple.ncm")
class NCM(MethodSettings):
    """The nearest class mean of centred features of unit length; nothing is trained."""

    kind: Literal["ncm"]
    backbones: OneBackbone
    distance: Literal["euclidean", "cosine"] = "euclidean"
