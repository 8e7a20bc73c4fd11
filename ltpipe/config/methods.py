"""Settings of the stage-two methods.

A method's `backbones` maps each role that it gives a feature store to the name of a backbone
(or, for embeddings from elsewhere, of a store). Names are resolved by the plan and are no part
of an artifact's identity.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from ltpipe.config.backbones import COSINE_LOSSES, LDAM, CrossEntropy, Loss
from ltpipe.config.base import Float, Settings


class MethodSettings(Settings):
    """What all methods share."""

    labels: ClassVar[frozenset[str]] = frozenset({"label", "description", "backbones"})

    label: str | None = None
    description: str = ""

    def roles(self) -> dict[str, str]:
        """Return the backbone's name for each role."""
        return dict(self.backbones.model_dump())  # type: ignore[attr-defined]

    def points(self) -> list[dict[str, float]]:
        """Return the sweep's points, one set of swept parameters each; [{}] without a sweep."""
        return [{}]

    def feature_overrides(self, role: str) -> dict[str, Any]:
        """Return settings of the feature store that this method needs changed for `role`."""
        return {}

    def stage1_subset_seed(self) -> int | None:
        """Return the subset seed that stage one must use, or None for the data set's own."""
        return None

    def protocol(self) -> str:
        """Return the evaluation protocol's tag."""
        return "last"

    def needs_images(self) -> bool:
        """Return whether the method runs the backbones itself, on images."""
        return False

    def needs_validation(self) -> bool:
        """Return whether the method chooses something by held-out samples.

        It is given features of a data set's own validation part, or else of the same backbone
        trained on a training set of which a part was set aside.
        """
        return False

    def filters(self) -> tuple[FlowFilter, int] | None:
        """Return the filter that the method's cascade is made of, and its number of blocks."""
        return None


class OneBackbone(Settings):
    features: str


class CeAndKps(Settings):
    ce: str
    kps: str


def _points(name: str, grid: float | list[float]) -> list[dict[str, float]]:
    return [{name: value} for value in (grid if isinstance(grid, list) else [grid])]


def _different(name: str, grid: float | list[float]) -> list[float]:
    values = grid if isinstance(grid, list) else [grid]
    if not values:
        raise ValueError(f"{name} needs at least one value")
    if len(set(values)) != len(values):
        raise ValueError(f"{name} names a value twice")
    return values


def _shares(w1: float | list[float]) -> float | list[float]:
    if any(not 0 <= value <= 1 for value in _different("w1", w1)):
        raise ValueError("w1 must lie between 0 and 1")
    return w1


def _rates(rate: float | list[float]) -> float | list[float]:
    if min(_different("learning_rate", rate)) <= 0:
        raise ValueError("learning_rate must be greater than 0")
    return rate


def _exponents(tau: float | list[float]) -> float | list[float]:
    if min(_different("tau", tau)) < 0:
        raise ValueError("tau must be at least 0")
    return tau


class OwnClassifier(MethodSettings):
    """The classifier that stage one trained, as it stands."""

    kind: Literal["own-classifier"]
    backbones: OneBackbone


class FFN(MethodSettings):
    """FFN: fused features under one cosine classifier, retrained with LDAM.

    `w1` weighs the KPS features and 1 - w1 the CE features. The defaults are the released code's;
    the paper's text trains with a learning rate of 0.1. `views: cached` draws one cached view a
    sample and epoch, `views: plain` uses the plain image only. `online` runs both backbones on
    freshly augmented images in the loop: slow, and the yardstick for the cache. `train_bn` and
    `subset_mismatch` repeat two defects of the official code. `best_test` adds the best epoch on
    the test set, under its own protocol tag.
    """

    kind: Literal["ffn"]
    backbones: CeAndKps
    w1: Float | list[Float] = 0.5
    initial: Literal["kps", "random"] = "kps"
    views: Literal["cached", "plain"] = "cached"
    online: bool = False
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
        return _points("w1", self.w1)

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
        return _points("w1", self.w1)


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

    _check_rates = field_validator("learning_rate")(_rates)

    def points(self) -> list[dict[str, float]]:
        if not isinstance(self.learning_rate, list):
            return [{}]
        return _points("learning_rate", self.learning_rate)


class Classifier(Retrained):
    """A classifier retrained on frozen features: any head, loss and sampler.

    With its defaults it is cRT. `weights` are class weights in the loss. A cosine head sees
    features of unit length, or squashed ones (`rows: squashed`), and its cosines are multiplied by
    `scale` (16 unless given) except under the losses that have a scale of their own.
    """

    kind: Literal["classifier"]
    head: Literal["linear", "cosine"] = "linear"
    loss: Loss = CrossEntropy(name="ce")
    weights: Literal["none", "inverse", "effective"] = "none"
    initial: Literal["random", "backbone"] = "random"
    rows: Literal["unit", "squashed"] | None = None
    scale: Float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _fits(self) -> Classifier:
        own_scale = isinstance(self.loss, COSINE_LOSSES)
        if own_scale and self.head != "cosine":
            raise ValueError(f"loss {self.loss.name!r} takes cosines: set head: cosine")
        if self.head == "linear" and (self.rows is not None or self.scale is not None):
            raise ValueError("rows and scale belong to head: cosine")
        if own_scale and self.scale is not None:
            raise ValueError(f"scale: loss {self.loss.name!r} has its own")
        return self


class LWS(Retrained):
    """Learnable weight scaling: the stage-one classifier with one learned factor a class."""

    kind: Literal["lws"]
    loss: Loss = CrossEntropy(name="ce")
    epochs: int = Field(default=5, ge=1)

    @model_validator(mode="after")
    def _fits(self) -> LWS:
        if isinstance(self.loss, COSINE_LOSSES):
            raise ValueError(f"loss {self.loss.name!r} takes cosines, which have no factors")
        return self


class MiSLAS(Retrained):
    """MiSLAS's second stage: label-aware smoothing, factors a class, a slowly moving classifier.

    `classifier_factor` multiplies the learning rate of the classifier itself.
    """

    kind: Literal["mislas"]
    head: Float = Field(default=0.3, ge=0, lt=1)
    tail: Float = Field(default=0.0, ge=0, lt=1)
    shape: Literal["concave", "linear", "convex"] = "concave"
    classifier_factor: Float = Field(default=0.2, ge=0)

    @model_validator(mode="after")
    def _falls(self) -> MiSLAS:
        if self.tail > self.head:
            raise ValueError("tail must not exceed head")
        return self


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


class RIDE(Retrained):
    """Several experts on the same features, kept apart by a diversity term.

    `diversity` weighs the divergence from the experts' mean (negative: apart), `reweight_from`
    is the 0-based epoch from which class weights and class-wise temperatures act (four fifths of
    all epochs unless given), `temperature_share` how far temperatures follow class counts.
    """

    kind: Literal["ride"]
    experts: int = Field(default=2, ge=1)
    head: Literal["linear", "cosine"] = "cosine"
    loss: Annotated[LDAM | CrossEntropy, Field(discriminator="name")] = LDAM(name="ldam")
    scale: Float = Field(default=30.0, gt=0)
    diversity: Float = -0.2
    temperature_share: Float = Field(default=0.05, ge=0, le=1)
    reweight_from: int | None = Field(default=None, ge=0)
    sampler: Literal["balanced", "shuffle", "effective", "sqrt"] = "shuffle"

    @model_validator(mode="after")
    def _fits(self) -> RIDE:
        if isinstance(self.loss, LDAM) and self.head != "cosine":
            raise ValueError("loss 'ldam' takes cosines: set head: cosine")
        if self.head == "linear" and "scale" in self.model_fields_set:
            raise ValueError("scale belongs to head: cosine")
        return self


class TauNorm(MethodSettings):
    """The stage-one classifier with rows divided by their norm to the power of tau.

    `select: validation` takes the tau of `tau` that is best on held-out samples, `select: none`
    shows them all.
    """

    kind: Literal["tau-norm"]
    backbones: OneBackbone
    tau: Float | list[Float] = [round(0.1 * step, 1) for step in range(21)]
    select: Literal["validation", "none"] = "validation"

    _check_tau = field_validator("tau")(_exponents)

    def points(self) -> list[dict[str, float]]:
        return [{}] if self.needs_validation() else _points("tau", self.tau)

    def protocol(self) -> str:
        return "best_val" if self.needs_validation() else "last"

    def needs_validation(self) -> bool:
        return self.select == "validation"


class LogitAdjusted(MethodSettings):
    """The stage-one classifier's logits less tau times the log prior; nothing is trained."""

    kind: Literal["logit-adjusted"]
    backbones: OneBackbone
    tau: Float | list[Float] = 1.0

    _check_tau = field_validator("tau")(_exponents)

    def points(self) -> list[dict[str, float]]:
        return _points("tau", self.tau) if isinstance(self.tau, list) else [{}]


class NCM(MethodSettings):
    """The nearest class mean of centred features of unit length; nothing is trained."""

    kind: Literal["ncm"]
    backbones: OneBackbone
    distance: Literal["euclidean", "cosine"] = "euclidean"


class FlowFilter(Settings):
    """DLSA's filter: a flow with a Gaussian mixture that takes the likeliest samples out.

    The defaults are those released for ImageNet-LT. `likelihood_weight` is meant at 2,048
    dimensions and is scaled to others, since likelihoods grow with them; `spread` is that of the
    clusters' centres (the square root of 5.12 / D unless given), `exponent` q of the class weights
    n ** -q, `share` what a block takes out.
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


class DLSA(MethodSettings):
    """DLSA: a cascade of filters, a cluster-aided classifier for what each takes out.

    `classifier` is what is trained on each group; `blocks: 0` trains it on all samples, without
    filters, which is what DLSA is compared with. `use_latent: false` passes the feature twice
    instead of the flow's latent vector, as the released code does by mistake. `initial: backbone`
    starts the feature's part of linear classifiers from stage one's.
    """

    kind: Literal["dlsa"]
    backbones: OneBackbone
    filter: FlowFilter = FlowFilter()
    blocks: int = Field(default=3, ge=0, le=4)
    classifier: Literal["balanced-softmax", "class-balanced-sampling", "cosine", "m2m", "ride"] = (
        "balanced-softmax"
    )
    use_latent: bool = True
    initial: Literal["random", "backbone"] = "random"
    epochs: int = Field(default=150, ge=1)
    batch_size: int = Field(default=128, ge=1)
    learning_rate: Float = Field(default=0.01, gt=0)
    schedule: Literal["cosine", "constant"] = "constant"
    momentum: Float = Field(default=0.0, ge=0, lt=1)
    weight_decay: Float = Field(default=0.0, ge=0)

    def filters(self) -> tuple[FlowFilter, int] | None:
        return (self.filter, self.blocks) if self.blocks else None


Method = Annotated[
    OwnClassifier
    | FFN
    | LogitFusion
    | Classifier
    | LWS
    | MiSLAS
    | M2M
    | RIDE
    | TauNorm
    | LogitAdjusted
    | NCM
    | DLSA,
    Field(discriminator="kind"),
]


def settings_of(kind: str) -> type[MethodSettings]:
    """Return the settings class of a method's kind.

    Raises:
        InputError: no method is called that.
    """
    from ltpipe.registry import check_name

    known = {
        model.model_fields["kind"].annotation.__args__[0]: model  # type: ignore[union-attr]
        for model in _subclasses(MethodSettings)
        if "kind" in model.model_fields
    }
    return known[check_name("method", kind)]


def _subclasses(model: type[MethodSettings]) -> list[type[MethodSettings]]:
    found = []
    for child in model.__subclasses__():
        found += [child, *_subclasses(child)]
    return found
