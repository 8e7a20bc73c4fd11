"""What all ways of training a backbone share: schedule, rule, network, what is cached."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from ltpipe.config.base import Float, Settings
from ltpipe.config.registry import check_name
from ltpipe.config.signatures import argument_names
from ltpipe.config.weights import TORCHVISION_FILES, existing_file, torchvision_file


class Rule(Settings):
    """A rebalancing rule; ltpipe.training.rules says what each does.

    `by` is the quantity by which rules resample (inverse, effective, sqrt) or reweight (inverse,
    effective): inverse class frequency unless given. `beta` is that of the effective number in
    class weights; resampling has 0.9999. `start` is the 0-based epoch from which the deferred
    rules act: unless given, four fifths of all epochs, which is 160 of 200.
    """

    name: Literal["none", "rs", "rw", "cb-rw", "drs", "drw", "dcb"]
    by: Literal["inverse", "effective", "sqrt"] | None = None
    beta: Float = Field(default=0.9999, ge=0, lt=1)
    start: int | None = Field(default=None, ge=0)

    @model_validator(mode="after")
    def _fits(self) -> Rule:
        choices = {
            "rs": ("inverse", "effective", "sqrt"),
            "drs": ("inverse", "effective", "sqrt"),
            "rw": ("inverse", "effective"),
            "drw": ("inverse", "effective"),
        }.get(self.name, ())
        if self.by is not None and self.by not in choices:
            known = f"one of {', '.join(choices)}" if choices else "it takes none"
            raise ValueError(f"rule {self.name!r} has no by: {self.by} ({known})")
        if self.start is not None and not self.is_deferred():
            raise ValueError(f"rule {self.name!r} acts from the first epoch: it has no start")
        weighs = self.name in ("cb-rw", "dcb") or (
            self.name in ("rw", "drw") and self.by == "effective"
        )
        if "beta" in self.model_fields_set and not weighs:
            raise ValueError(f"rule {self.name!r} has no beta: it weighs by no effective number")
        return self

    def is_deferred(self) -> bool:
        """Return whether the rule waits."""
        return self.name in ("drs", "drw", "dcb")

    def first_epoch(self, epochs: int) -> int:
        """Return the 0-based epoch from which the rule acts, of `epochs`."""
        if not self.is_deferred():
            return 0
        return 4 * epochs // 5 if self.start is None else self.start


class Schedule(Settings):
    """Learning rate by epoch: linear warm-up, then steps of the initial rate, or a cosine to 0.

    The warm-up's line begins at `warmup_start` of the rate, before its first epoch.
    """

    kind: Literal["step", "cosine", "constant"] = "step"
    warmup: int = Field(default=5, ge=0)
    warmup_start: Float = Field(default=0.0, ge=0, lt=1)
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
    leaves BatchNorm on batch statistics, as the official FFN code does by mistake. `batch_norm:
    re-estimated` moves its stored statistics on in an epoch of augmented images, every class drawn
    equally often, before anything is cached: what MiSLAS's second stage does to a frozen network.
    """

    views: int = Field(default=0, ge=0)
    view_seed: int = Field(default=0, ge=0)
    view_dtype: Literal["float16", "float32"] = "float16"
    batch_size: int = Field(default=256, ge=1)
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    train_bn: bool = False
    batch_norm: Literal["stored", "re-estimated"] = "stored"

    @model_validator(mode="after")
    def _one_use_of_statistics(self) -> FeatureSettings:
        if self.train_bn and self.batch_norm != "stored":
            raise ValueError("batch_norm: with train_bn the stored statistics are not used")
        return self


class BackboneSettings(Settings):
    """What all ways of training a backbone share.

    `attention` puts a module into every residual block (resnet8 to resnet56). `weights` starts the
    network from a file, or from torchvision's published weights of that
    name, as in `weights: IMAGENET1K_V1`. `trained` says what of it is then trained: everything,
    or the last stage and the classifier only (torchvision networks).
    """

    labels: ClassVar[frozenset[str]] = frozenset({"description", "features"})

    network: str
    head: Literal["linear", "cosine"] = "linear"
    attention: Literal["simam", "se", "cbam", "eca"] | None = None
    weights: str | None = None
    trained: Literal["all", "last-stage"] = "all"
    epochs: int = Field(default=200, ge=1)
    batch_size: int = Field(default=128, ge=2)
    learning_rate: Float = Field(default=0.1, gt=0)
    momentum: Float = Field(default=0.9, ge=0, lt=1)
    nesterov: bool = False
    weight_decay: Float = Field(default=2e-4, ge=0)
    schedule: Schedule = Schedule()
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    compile: bool | Literal["auto"] = False
    features: FeatureSettings = FeatureSettings()
    description: str = ""

    @field_validator("network")
    @classmethod
    def _network_exists(cls, name: str) -> str:
        return check_name("network", name)

    @model_validator(mode="after")
    def _network_fits(self) -> BackboneSettings:
        takes = argument_names("network", self.network)
        if self.attention is not None and "attention" not in takes:
            raise ValueError(f"attention: {self.network} has no place for it; take resnet8 to 56")
        if "weights" not in takes:
            if self.weights is not None:
                raise ValueError(f"weights: {self.network} starts from fresh weights only")
            if self.trained != "all":
                raise ValueError(f"trained: {self.network} is trained as a whole")
        return self

    def check_start(self, rule: Rule) -> None:
        """Refuse a deferred rule that would wait beyond the last epoch."""
        if rule.first_epoch(self.epochs) >= self.epochs:
            raise ValueError(
                f"rule.start {rule.start} lies beyond the last of {self.epochs} epochs"
            )

    def splits_classes(self) -> bool:
        """Return whether the classifier's outputs stand for subclasses instead of classes."""
        return False

    def covers_all_classes(self) -> bool:
        """Return whether the classifier has an output for every class."""
        return True

    def has_classifier(self) -> bool:
        """Return whether the network has a classifier of its own."""
        return True

    def prepares_images(self) -> bool:
        """Return whether images are brought to the network's own size from their files."""
        return False

    def knows_imagenet(self) -> bool:
        """Return whether its weights come from a training on ImageNet's images."""
        return self.weights is not None and (self.network, self.weights) in TORCHVISION_FILES

    def origin(self) -> str:
        """Return in words what the network starts from, where tables are to say so."""
        return ""

    def weights_file(self) -> str | None:
        """Return `weights` where it names a file and not a tag."""
        if self.weights is None:
            return None
        is_path = "/" in self.weights or self.weights.endswith(
            (".safetensors", ".bin", ".pt", ".pth")
        )
        return self.weights if is_path else None

    def files(self, root: Path | None) -> Iterator[tuple[str, str]]:
        """Yield the file of the weights that the network starts from: a name, and the path.

        Weights that a job is told to find by a tag yield nothing where the tag is unknown here.

        Raises:
            InputError: the file is not there; says what to put where.
        """
        if self.weights is not None:
            published = torchvision_file(self.network, self.weights)
            yield "weights", str(published or existing_file(self.weights))

    def locations(self) -> frozenset[str]:
        return frozenset({"weights"}) if self.weights_file() else frozenset()

    def has_seed(self) -> bool:
        """Return whether anything of the network is drawn or trained here."""
        return self.epochs > 0 or self.weights is None

    def train_identity(self) -> dict[str, Any]:
        """Return what decides the trained weights."""
        return self.identity()
