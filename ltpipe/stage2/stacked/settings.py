"""Settings of the methods that are made of others: the stack, and what corrects probabilities."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from ltpipe.config.base import Float
from ltpipe.config.choices import Choice
from ltpipe.config.methods import MethodSettings, different
from ltpipe.config.registry import method


class OfMembers(MethodSettings):
    """What the methods share whose members are methods.

    `backbones` gives names of backbones to roles, and the `backbones` of each member give these
    roles to the member's own.
    """

    stackable = False

    backbones: dict[str, str] = Field(min_length=1)
    members: dict[str, Annotated[MethodSettings, Choice("method", "kind", brief=True)]] = Field(
        min_length=1
    )

    @model_validator(mode="after")
    def _members_fit(self) -> Self:
        used = set()
        for name, member in self.members.items():
            for role in member.roles().values():
                used.add(role)
                if role not in self.backbones:
                    known = ", ".join(self.backbones)
                    raise ValueError(f"members.{name}: no role {role!r} in backbones: {known}")
            if len(member.points()) != 1:
                raise ValueError(f"members.{name}: a member has no sweep; give one value")
            if member.needs_images() or member.stage1_subset_seed() is not None:
                raise ValueError(f"members.{name}: members work on cached features alone")
            if not member.stackable:
                raise ValueError(f"members.{name}: {member.kind} is no part of a stack")
            if any(member.feature_overrides(role) for role in member.roles()):
                raise ValueError(f"members.{name}: members share the features as they are")
            if member.filters() is not None or member.protocol() != "last":
                raise ValueError(
                    f"members.{name}: filters, choices by held-out samples and oracles are no "
                    "part of a stack"
                )
        if unused := sorted(set(self.backbones) - used):
            raise ValueError(f"backbones: no member uses {unused[0]!r}")
        return self

    def roles(self) -> dict[str, str]:
        return dict(self.backbones)

    def identity(self) -> dict[str, Any]:
        """Return what defines the artifact; members with the roles that they are given."""
        members = {
            name: {**member.identity(), "backbones": member.roles()}
            for name, member in self.members.items()
        }
        return {**super().identity(), "members": members}

    def reads_classifier(self, role: str) -> bool:
        return any(
            member.reads_classifier(own)
            for member in self.members.values()
            for own, outer in member.roles().items()
            if outer == role
        )

    def check_backbone(self, role: str, backbone: Any) -> None:
        for member in self.members.values():
            for own, outer in member.roles().items():
                if outer == role:
                    member.check_backbone(own, backbone)


@method("stacked", paper="ltpipe", runs="ltpipe.stage2.stacked.job")
class Stacked(OfMembers):
    """Predictions of several methods multiplied, each to the power of a weight of its own.

    `backbones` gives names of backbones to roles, and the `backbones` of each member give these
    roles to the member's own. `weights: fitted` chooses the powers by the class-balanced
    likelihood of held-out samples, drawn to equal shares as by `prior` samples; `equal` takes
    the geometric mean and holds nothing out.
    """

    kind: Literal["stacked"]
    members: dict[str, Annotated[MethodSettings, Choice("method", "kind", brief=True)]] = Field(
        min_length=2
    )
    weights: Literal["fitted", "equal"] = "fitted"
    prior: Float = Field(default=1.0, gt=0)

    def protocol(self) -> str:
        return "best_val" if self.needs_validation() else "last"

    def needs_validation(self) -> bool:
        return self.weights == "fitted"


@method("calibrated", paper="Alexandari et al., ICML 2020", runs="ltpipe.stage2.stacked.calibrated")
class Calibrated(OfMembers):
    """One method with probabilities that held-out samples correct, for any class prior, and sets.

    `form` is that of `ltpipe.stage2.core.calibration`. `folds: 1` corrects by the held-out part;
    from 2 on the training samples are cut into as many folds, each of which is left out once, so
    that all of them correct: for networks that were not trained on them. The corrected
    probabilities are those under the training prior; `prior: uniform` moves them to classes that
    are equally likely. `coverage` also measures sets that hold the true class so often, by every
    rule; `shifts` also measures long-tailed parts of the test set, forward and backward with these
    ratios, without adaptation, with a prior estimated from the part's own samples (`adapted`), and
    `told` its prior.
    """

    kind: Literal["calibrated"]
    members: dict[str, Annotated[MethodSettings, Choice("method", "kind", brief=True)]] = Field(
        min_length=1, max_length=1
    )
    form: Literal["temperature", "vector", "bcts", "class-size"] = "class-size"
    folds: int = Field(default=1, ge=1, le=20)
    prior: Literal["uniform", "training"] = "uniform"
    coverage: Float | None = Field(default=None, gt=0, lt=1)
    shifts: list[Float] = []  # noqa: RUF012

    @field_validator("shifts")
    @classmethod
    def _ratios(cls, values: list[float]) -> list[float]:
        if values and min(different("shifts", values)) < 1:
            raise ValueError("shifts are ratios of at least 1")
        return values

    def check_backbone(self, role: str, backbone: Any) -> None:
        super().check_backbone(role, backbone)
        if self.folds > 1 and backbone.has_seed():
            raise ValueError("it was trained on the samples that folds would leave out; folds: 1")

    def protocol(self) -> str:
        return "best_val"

    def needs_validation(self) -> bool:
        return self.folds == 1
