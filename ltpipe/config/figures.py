"""Settings of an experiment's figures."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from ltpipe.config.base import Float, Name, Settings
from ltpipe.config.tables import Expected


class FigureSettings(Settings):
    """What all figures share: `of` names the papers' figures that one draws, as in `FFN Fig2`."""

    of: list[str] = []


class ClassDistribution(FigureSettings):
    kind: Literal["class_distribution"]
    dataset: str


class PerClassAccuracy(FigureSettings):
    kind: Literal["per_class_accuracy"]
    dataset: str
    methods: list[str] = Field(min_length=1)
    at: dict[str, Float] = {}


class SweepCurve(FigureSettings):
    kind: Literal["sweep_curve"]
    dataset: str
    method: str
    parameter: str = "w1"
    metric: str = "accuracy"
    expected: Expected | None = None
    paper_method: str | None = None


class Tsne(FigureSettings):
    """t-SNE of cached features; `fused` adds FFN's mixture of two backbones."""

    kind: Literal["tsne"]
    dataset: str
    backbones: list[str] = Field(min_length=1)
    fused: FusedFeatures | None = None


class FusedFeatures(Settings):
    ce: str
    kps: str
    w1: Float = Field(default=0.5, ge=0, le=1)


class Confusion(FigureSettings):
    """Classes by training count; `bins` puts neighbours together, `diagonal: false` shows errors.

    DLSA's Fig. 1 has 20 bins without the diagonal.
    """

    kind: Literal["confusion"]
    dataset: str
    method: str
    at: dict[str, Float] = {}
    bins: int | None = Field(default=None, ge=2)
    diagonal: bool = True


class Reliability(FigureSettings):
    """Accuracy over confidence, a panel a method (calibration: Guo et al., ICML 2017)."""

    kind: Literal["reliability"]
    dataset: str
    methods: list[str] = Field(min_length=1)
    at: dict[str, Float] = {}


class TrainingCurves(FigureSettings):
    """Loss and accuracy over epochs of `backbones` (names, `*` allowed), all unless given."""

    kind: Literal["training_curves"]
    dataset: str
    backbones: list[str] = Field(default=["*"], min_length=1)


class TailAccuracy(FigureSettings):
    """Accuracy on the samples of the rarest classes, by their number (HRJBA's Figs. 6, 7).

    Of two methods the published difference of the second to the first may stand beside:
    `paper_method` then names its rows, with {size} for a number of classes.
    """

    kind: Literal["tail_accuracy"]
    dataset: str
    methods: list[str] = Field(min_length=1)
    sizes: list[int] = Field(min_length=1)
    expected: Expected | None = None
    paper_method: str | None = None

    @model_validator(mode="after")
    def _compares_two(self) -> TailAccuracy:
        if self.expected is not None and len(self.methods) != 2:
            raise ValueError("expected: differences are published; give two methods")
        return self


class SettingCurve(FigureSettings):
    """A metric over a numeric setting of the methods' backbones (CWS's Fig. 4).

    `lines` maps each line's name to the methods on it (`*` allowed), `levels` a line's name to a
    method that it is compared with, a dashed line. `name` tells two such figures of one data set
    apart.
    """

    kind: Literal["setting_curve"]
    dataset: str
    setting: str
    lines: dict[str, str] = Field(min_length=1)
    levels: dict[str, str] = {}
    name: Name | Literal[""] = ""
    metric: str = "accuracy"


class SubclassOccupancy(FigureSettings):
    """How a CWS backbone's classes fill their subclasses over the epochs, the largest classes."""

    kind: Literal["subclass_occupancy"]
    dataset: str
    backbone: str
    classes: int = Field(default=4, ge=1)


class CascadeFigure(FigureSettings):
    """What a cascade's filters did: several `dlsa` methods beside each other."""

    dataset: str
    methods: list[str] = Field(min_length=1)


class ClusterSizes(CascadeFigure):
    """Sizes of the clusters of one block, sorted (DLSA's Fig. 5)."""

    kind: Literal["cluster_sizes"]
    block: int = Field(default=1, ge=1)


class ClusterPurity(CascadeFigure):
    """How pure the clusters of one block are (DLSA's Fig. 6)."""

    kind: Literal["cluster_purity"]
    block: int = Field(default=1, ge=1)


class Separation(CascadeFigure):
    """The share of tail classes among what each block takes out (DLSA's Fig. 7)."""

    kind: Literal["separation"]


class CascadeTsne(FigureSettings):
    """Test features of a backbone by the block that takes them out (DLSA's Fig. 8)."""

    kind: Literal["cascade_tsne"]
    dataset: str
    backbone: str
    method: str


class Probing(FigureSettings):
    """Accuracy over how well a sample's group, head or tail, is known (DLSA's Fig. 2)."""

    kind: Literal["probing"]
    dataset: str
    methods: list[str] = Field(min_length=1)
    tail_count: int = Field(default=50, ge=0)


class ActivationMaps(FigureSettings):
    """Where backbones look in test images of the head or tail classes (HRJBA's Figs. 3, 9).

    `images` test images, one of each of the group's largest classes; `channels` single channels
    beside the map, `untrained` the map before training.
    """

    kind: Literal["activation_maps"]
    dataset: str
    backbones: list[str] = Field(min_length=1)
    method: Literal["grad-cam", "cam"] = "grad-cam"
    group: Literal["head", "tail"] = "tail"
    tail_share: Float = Field(default=0.6, gt=0, lt=1)
    images: int = Field(default=3, ge=1)
    channels: int = Field(default=0, ge=0)
    untrained: bool = False


class Ranking(FigureSettings):
    """Mean ranks of methods over data sets and draws; names may hold `*`. `name` is its file's."""

    kind: Literal["ranking"]
    name: str
    datasets: list[str] = ["*"]
    methods: list[str] = Field(min_length=1)
    metric: Literal["accuracy", "balanced_accuracy", "few", "macro_f1", "nll", "ece"] = "accuracy"


Figure = Annotated[
    ClassDistribution
    | PerClassAccuracy
    | SweepCurve
    | Tsne
    | Confusion
    | Reliability
    | TrainingCurves
    | SettingCurve
    | TailAccuracy
    | SubclassOccupancy
    | ClusterSizes
    | ClusterPurity
    | Separation
    | CascadeTsne
    | Probing
    | ActivationMaps
    | Ranking,
    Field(discriminator="kind"),
]
