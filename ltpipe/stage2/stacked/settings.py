"""Settings of the stack."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from ltpipe.config.base import Float
from ltpipe.config.choices import Choice
from ltpipe.config.methods import MethodSettings
from ltpipe.config.registry import method


@method("stacked", paper="ltpipe", runs="ltpipe.stage2.stacked.job")
class Stacked(MethodSettings):
    """Predictions of several methods multiplied, each to the power of a weight of its own.

    `backbones` gives names of backbones to roles, and the `backbones` of each member give these
    roles to the member's own. `weights: fitted` chooses the powers by the class-balanced
    likelihood of held-out samples, drawn to equal shares as by `prior` samples; `equal` takes
    the geometric mean and holds nothing out.
    """

    stackable = False

    kind: Literal["stacked"]
    backbones: dict[str, str] = Field(min_length=1)
    members: dict[str, Annotated[MethodSettings, Choice("method", "kind", brief=True)]] = Field(
        min_length=2
    )
    weights: Literal["fitted", "equal"] = "fitted"
    prior: Float = Field(default=1.0, gt=0)

    @model_validator(mode="after")
    def _members_fit(self) -> Stacked:
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

    def protocol(self) -> str:
        return "best_val" if self.needs_validation() else "last"

    def needs_validation(self) -> bool:
        return self.weights == "fitted"

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
