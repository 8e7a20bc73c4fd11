"""What the settings of all stage-two methods share, and the grids that they may sweep.

A method's `backbones` maps each role that it gives a feature store to the name of a backbone
(or, for embeddings from elsewhere, of a store). Names are resolved by the plan and are no part
of an artifact's identity.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from ltpipe.config.base import Settings
from ltpipe.config.choices import Choice
from ltpipe.config.registry import load


class MethodSettings(Settings):
    """What all methods share."""

    labels: ClassVar[frozenset[str]] = frozenset({"label", "description", "backbones"})
    # Whether it may be a member of method stacked.
    stackable: ClassVar[bool] = True

    kind: str
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

    def reads_classifier(self, role: str) -> bool:
        """Return whether the method takes stage one's classifier for one over classes."""
        return False

    def needs_views(self) -> bool:
        """Return whether the method trains on cached views of augmented images."""
        return False

    def check_views(self, backbone: Any) -> None:
        """Raise ValueError where views are needed that the backbone does not cache."""
        if self.needs_views() and not backbone.features.views:
            raise ValueError(
                "it caches no augmented views; set features.views there, or views: plain in the "
                "method"
            )

    def check_backbone(self, role: str, backbone: Any) -> None:
        """Raise ValueError where the method cannot use a backbone with these settings."""
        self.check_views(backbone)
        if self.reads_classifier(role) and not backbone.has_classifier():
            raise ValueError(
                "it is not trained here and has no classifier over these classes; take a method "
                "that trains one, such as crt or balanced-softmax"
            )
        if backbone.splits_classes() and self.reads_classifier(role):
            raise ValueError(
                "its classifier is over subclasses; method label-mapping leads from them to classes"
            )
        if not backbone.covers_all_classes() and self.reads_classifier(role):
            raise ValueError(
                "its classifier knows a part of the classes; method hrjba joins two such parts"
            )

    def filters(self) -> tuple[Settings, int] | None:
        """Return the settings of the filters that the method is given, and how many blocks."""
        return None

    def filter_role(self) -> str:
        """Return the role whose features the filters see."""
        return "features"


class OneBackbone(Settings):
    features: str


Method = Annotated[MethodSettings, Choice("method", "kind")]


def settings_of(kind: str) -> type[MethodSettings]:
    """Return the settings class of a method's kind.

    Raises:
        InputError: no method is called that.
    """
    settings: type[MethodSettings] = load("method", kind)
    return settings


def points(name: str, grid: float | list[float]) -> list[dict[str, float]]:
    return [{name: value} for value in (grid if isinstance(grid, list) else [grid])]


def different(name: str, grid: float | list[float]) -> list[float]:
    values = grid if isinstance(grid, list) else [grid]
    if not values:
        raise ValueError(f"{name} needs at least one value")
    if len(set(values)) != len(values):
        raise ValueError(f"{name} names a value twice")
    return values


def rates(rate: float | list[float]) -> float | list[float]:
    if min(different("learning_rate", rate)) <= 0:
        raise ValueError("learning_rate must be greater than 0")
    return rate


def decays(decay: float | list[float]) -> float | list[float]:
    if min(different("weight_decay", decay)) < 0:
        raise ValueError("weight_decay must be at least 0")
    return decay


def exponents(tau: float | list[float]) -> float | list[float]:
    if min(different("tau", tau)) < 0:
        raise ValueError("tau must be at least 0")
    return tau
