"""Settings of the stage-two methods.

A method's `backbones` maps each role that it gives a feature store to the name of a backbone
(or, for embeddings from elsewhere, of a store). Names are resolved by the plan and are no part
of an artifact's identity.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

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


class OneBackbone(Settings):
    features: str


class CeAndKps(Settings):
    ce: str
    kps: str


def _points(w1: float | list[float]) -> list[dict[str, float]]:
    return [{"w1": value} for value in (w1 if isinstance(w1, list) else [w1])]


def _grid(w1: float | list[float]) -> float | list[float]:
    values = w1 if isinstance(w1, list) else [w1]
    if not values:
        raise ValueError("w1 needs at least one value")
    if any(not 0 <= value <= 1 for value in values):
        raise ValueError("w1 must lie between 0 and 1")
    if len(set(values)) != len(values):
        raise ValueError("w1 names a value twice")
    return w1


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

    _check_w1 = field_validator("w1")(_grid)

    @model_validator(mode="after")
    def _online_fits(self) -> FFN:
        if self.online and self.views == "plain":
            raise ValueError("online: true augments every image; it has no views: plain")
        return self

    def points(self) -> list[dict[str, float]]:
        return _points(self.w1)

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

    _check_w1 = field_validator("w1")(_grid)

    def points(self) -> list[dict[str, float]]:
        return _points(self.w1)


Method = Annotated[OwnClassifier | FFN | LogitFusion, Field(discriminator="kind")]


def settings_of(kind: str) -> type[MethodSettings]:
    """Return the settings class of a method's kind.

    Raises:
        InputError: no method is called that.
    """
    from ltpipe.registry import check_name

    known = {
        model.model_fields["kind"].annotation.__args__[0]: model  # type: ignore[union-attr]
        for model in MethodSettings.__subclasses__()
    }
    return known[check_name("method", kind)]
