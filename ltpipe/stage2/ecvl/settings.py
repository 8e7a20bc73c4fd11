"""Settings of ECVL and BALLAD."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from ltpipe.config.base import Float, Settings
from ltpipe.config.methods import different
from ltpipe.config.registry import method
from ltpipe.stage2.core.settings import OnTexts


def _shares(value: float | list[float]) -> float | list[float]:
    if any(not 0 <= share <= 1 for share in different("lambda", value)):
        raise ValueError("lambda must lie between 0 and 1")
    return value


class Adapter(Settings):
    """The adapter ``lambda ReLU(W f + b) + (1 - lambda) f`` (ECVL's eq. 7).

    BALLAD's code has neither `relu` nor `bias`. `lambda` may be a list: all its points are trained
    together.
    """

    relu: bool = True
    bias: bool = True
    share: Float | list[Float] = Field(default=0.2, alias="lambda")

    _check_share = field_validator("share")(_shares)


@method("ecvl", paper="ECVL; BALLAD: Ma et al., 2021", runs="ltpipe.stage2.ecvl.job")
class ECVL(OnTexts):
    """ECVL's phase II, and with `momentum` and `randaugment` off BALLAD.

    `momentum` trains on the contrastive loss of two views of an image, too, `mu` times (a list is
    a sweep), at `temperature`. `randaugment` takes views from the ladder by each sample's memory:
    the moving average of its contrastive loss, which keeps `beta` of its value an epoch (eq. 8),
    against the mean over samples (eq. 9). `deviation: signed` is eq. 9 as printed, `memory_update:
    all` measures every image once an epoch and not those that were drawn, `memory_sampling` draws
    a class's images by their memory. `sampler: balanced` draws a class and one of its images, with
    replacement (eq. 12); `cycle` goes through the images of each class in turn, as BALLAD's code.
    `online` augments and encodes images in the loop: slow, and the yardstick for the cache.
    """

    kind: Literal["ecvl"]
    adapter: Adapter = Adapter()
    momentum: bool = True
    randaugment: bool = True
    mu: Float | list[Float] = 1.0
    temperature: Float = Field(default=0.2, gt=0)
    beta: Float = Field(default=0.97, ge=0, lt=1)
    deviation: Literal["absolute", "signed"] = "absolute"
    memory_update: Literal["drawn", "all"] = "drawn"
    memory_sampling: bool = False
    views: Literal["cached", "plain"] = "cached"
    online: bool = False
    sampler: Literal["balanced", "cycle", "shuffle", "effective", "sqrt"] = "balanced"
    per_class: int = Field(default=4, ge=1)
    epochs: int = Field(default=10, ge=1)
    batch_size: int = Field(default=512, ge=2)
    optimizer: Literal["adamw", "sgd"] = "sgd"
    learning_rate: Float = Field(default=0.2, gt=0)
    schedule: Literal["cosine", "constant"] = "cosine"
    sgd_momentum: Float = Field(default=0.9, ge=0, lt=1)
    weight_decay: Float = Field(default=5e-4, ge=0)

    @field_validator("mu")
    @classmethod
    def _weighs(cls, mu: float | list[float]) -> float | list[float]:
        if min(different("mu", mu)) < 0:
            raise ValueError("mu must be at least 0")
        return mu

    @model_validator(mode="after")
    def _fits(self) -> ECVL:
        if not self.momentum and "mu" in self.model_fields_set:
            raise ValueError("mu weighs the loss that momentum: false leaves out")
        if self.views == "plain" and (self.momentum or self.randaugment or self.online):
            raise ValueError("views: plain has one view of an image; momentum needs two")
        if self.memory_sampling and self.sampler != "balanced":
            raise ValueError("memory_sampling draws within classes: leave sampler: balanced")
        if self.optimizer == "adamw" and "sgd_momentum" in self.model_fields_set:
            raise ValueError("sgd_momentum belongs to optimizer: sgd")
        if self.online and len(self.points()) > 1:
            raise ValueError("online: true runs one point; give mu and lambda one value each")
        if self.online and self.memory_update == "all":
            raise ValueError("memory_update: all reads the cache; online: true has none")
        return self

    def points(self) -> list[dict[str, float]]:
        found: list[dict[str, float]] = [{}]
        for name, grid in (("lambda", self.adapter.share), ("mu", self.mu)):
            if isinstance(grid, list):
                found = [{**point, name: value} for point in found for value in grid]
        return found

    def needs_images(self) -> bool:
        return self.online

    def needs_views(self) -> bool:
        return self.views == "cached" and not self.online

    def check_backbone(self, role: str, backbone: Any) -> None:
        super().check_backbone(role, backbone)
        features = backbone.features
        if self.randaugment and features.ladder is None:
            raise ValueError(
                "it has no ladder of RandAugment views; set features.ladder there, or "
                "randaugment: false in the method"
            )
        if not self.needs_views() or not self.needs_pairs():
            return
        for setting, number in (
            ("views", features.views),
            ("ladder.draws", features.ladder.draws if self.randaugment else 2),
        ):
            if number < 2:
                raise ValueError(
                    f"features.{setting} is {number}, and the contrast is between two different "
                    "views of an image; set it to 2 at least"
                )

    def needs_pairs(self) -> bool:
        """Return whether two views of each image are contrasted."""
        return self.momentum or self.is_measured()

    def is_measured(self) -> bool:
        """Return whether each sample's memory is kept."""
        return self.randaugment or self.memory_sampling
