"""Settings of the data sets."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from ltpipe.config.base import Float, Name, Settings
from ltpipe.config.choices import Choice
from ltpipe.config.registry import reader
from ltpipe.utils.paths import locate

Size = Annotated[list[int], Field(min_length=2, max_length=2)]


class InputSettings(Settings):
    """How an image becomes the network's input.

    `size` is height and width as the network sees them; `stored` those at which image files are
    decoded and kept (default: `size`). `fit` says how they come to that size: `cover` resizes the
    shorter side and keeps the middle, `stretch` resizes both sides and so changes the aspect
    ratio, `whole` resizes the shorter side and keeps all, so that a `resized_crop` comes from the
    whole image, with the test view of `cover`. `padding`, `flip`, `resized_crop` (of a share of the
    area within `crop_scale`, sampled by `interpolation`) and `color_jitter` are the training
    augmentation; the test view has none of them. `orientation: exif` turns and mirrors photos as
    their EXIF tags say, which cameras write and published pipelines ignore.
    """

    size: Size
    stored: Size | None = None
    channels: Literal[1, 3] = 3
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    fit: Literal["cover", "stretch", "whole"] = "cover"
    orientation: Literal["stored", "exif"] = "stored"
    mean: list[Float] = Field(default=[0.485, 0.456, 0.406], min_length=1, max_length=3)
    std: list[Float] = Field(default=[0.229, 0.224, 0.225], min_length=1, max_length=3)
    padding: int = Field(default=0, ge=0)
    flip: bool = False
    resized_crop: bool = False
    crop_scale: Annotated[list[Float], Field(min_length=2, max_length=2)] = [0.08, 1.0]
    color_jitter: Float = Field(default=0.0, ge=0, lt=1)

    @property
    def kept(self) -> tuple[int, int]:
        """Height and width at which images are kept."""
        height, width = self.stored or self.size
        return height, width

    @model_validator(mode="after")
    def _fits(self) -> InputSettings:
        if len(self.mean) != self.channels or len(self.std) != self.channels:
            raise ValueError(f"mean and std need one number for each of {self.channels} channels")
        if min(self.std) <= 0:
            raise ValueError("std must be positive")
        if min(self.size) < 1:
            raise ValueError("size must be positive")
        if not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise ValueError("crop_scale must rise within 0 .. 1")
        if "crop_scale" in self.model_fields_set and not self.resized_crop:
            raise ValueError("crop_scale belongs to resized_crop: true")
        if self.fit == "whole" and not self.resized_crop:
            raise ValueError("fit: whole is for resized_crop: true; take cover or stretch")
        if self.stored is not None and any(
            s < i for s, i in zip(self.stored, self.size, strict=True)
        ):
            raise ValueError("stored must not be smaller than size")
        return self


class NetworkInput(Settings):
    """How a pretrained network sees an image, as whoever trained it had it.

    The image is brought to `resized` (height, width) as `fit` says, and its middle `size` is kept;
    `mean` and `std` of each channel are in units of the full range 0 .. 1.
    """

    size: Size
    resized: Size
    interpolation: Literal["bilinear", "bicubic"]
    fit: Literal["cover", "stretch"]
    mean: list[Float]
    std: list[Float]


class Expect(Settings):
    """What the source must hold before any subset is drawn; a mismatch stops the run.

    `train`, `val` and `test` are numbers of samples, `largest` and `smallest` those of training
    classes, `train_counts` all of them. `train_digest` is the first 16 hex digits of the SHA-256
    of these numbers, joined by commas.
    """

    classes: int | None = Field(default=None, ge=1)
    train: int | None = Field(default=None, ge=1)
    val: int | None = Field(default=None, ge=0)
    test: int | None = Field(default=None, ge=0)
    largest: int | None = Field(default=None, ge=1)
    smallest: int | None = Field(default=None, ge=1)
    train_counts: list[int] | None = Field(default=None, min_length=1)
    train_digest: str | None = Field(default=None, pattern="^[0-9a-f]{16}$")


class DatasetSettings(Settings):
    """What all sources share: the long-tailed draw, the split, the shot groups.

    `imbalance` is the ratio of the largest to the smallest class (None: all training images as
    they are), `max_count` the largest class. `subset_seed` seeds the draw alone, apart from the
    training seed. `groups` says
    how classes are called many-, medium- and few-shot: `thresholds` (more than 100, fewer than
    20 training images) or `ranks` (thirds of the ranking). `expect` guards against files other
    than the published ones.
    """

    labels: ClassVar[frozenset[str]] = frozenset(
        {"label", "benchmark", "note", "description", "draws_of"}
    )

    source: str
    imbalance: Float | None = Field(default=None, ge=1)
    profile: Literal["exp", "step", "pareto"] = "exp"
    max_count: int | None = Field(default=None, ge=1)
    rounding: Literal["floor", "nearest"] = "floor"
    subset_seed: int = Field(default=0, ge=0, lt=2**32)
    class_order: Literal["natural", "shuffled"] = "natural"
    val_fraction: Float = Field(default=0.0, ge=0, lt=1)
    groups: Literal["ranks", "thresholds"] = "ranks"
    expect: Expect | None = None
    label: str | None = None
    benchmark: str | None = None
    note: str = ""
    description: str = ""
    # Tables join draws that differ in `subset_seed` alone under this name; `subset_seeds` sets it.
    draws_of: str | None = None

    @abstractmethod
    def files(self, root: Path | None) -> Iterator[tuple[str, str]]:
        """Yield every file from outside whose contents decide the data: a name, and the path.

        A name is relative to the data set and says which part the file plays; it stays the same
        where the folder is moved. Data that come with the package yield nothing.

        Raises:
            InputError: the data set is not there; says what to put where.
        """

    def fetch(self, root: Path | None) -> None:
        """Download what is missing and may be downloaded.

        Raises:
            InputError: the data set is not there and can't be downloaded.
        """
        next(iter(self.files(root)), None)

    def is_of_imagenet(self) -> bool:
        """Return whether the images are ImageNet's, as far as the settings tell."""
        return self.source == "tiny-imagenet" or "ImageNet" in (self.benchmark or "")

    def draw_identity(self) -> dict[str, Any]:
        """Return what decides which samples are drawn; `input` names the size to decode at."""
        identity = self.identity()
        identity.pop("input", None)
        identity.pop("groups", None)
        return identity

    def image_identity(self) -> dict[str, Any]:
        """Return what decides the samples and how images reach a network."""
        identity = self.identity()
        identity.pop("groups", None)
        return identity


class ImageDataset(DatasetSettings):
    """Images: `input` says how one becomes a network's input."""

    # Whether images are files, which have to be decoded.
    decodes: ClassVar[bool] = False
    input: InputSettings

    def pack_identity(self) -> dict[str, Any]:
        """Return what decides the pixels of the drawn images as they are packed."""
        wanted = self.input
        kept = InputSettings(
            size=list(wanted.kept),
            channels=wanted.channels,
            interpolation=wanted.interpolation,
            fit=wanted.fit,
            orientation=wanted.orientation,
            # What else an input needs to be one.
            mean=[0.0] * wanted.channels,
            std=[1.0] * wanted.channels,
            resized_crop=wanted.fit == "whole",
        )
        return {**self.draw_identity(), "input": kept.identity()}

    def seen_by(self, network: NetworkInput) -> Self:
        """Return the same data set as a pretrained network sees it, its augmentation unchanged."""
        changed = {
            "size": network.size,
            "stored": network.resized,
            "interpolation": network.interpolation,
            "fit": network.fit,
            "mean": network.mean,
            "std": network.std,
        }
        return self.model_copy(update={"input": self.input.model_copy(update=changed)})

    @abstractmethod
    def read(self, root: Path | None) -> Any:
        """Open the data set and return its class names and parts, an ltpipe.data.sources.Source.

        Args:
            root: the folder that relative paths are under, see `ltpipe.utils.paths.locate`.

        Raises:
            InputError: files are missing or damaged; says which, and what to put where.
        """


class SplitSettings(Settings):
    """How test samples are split off the training ones of a data set that has none of its own.

    `test_fraction` of each class (0.2 unless given) is taken by `split_seed`; see
    `ltpipe.data.longtail.split_test`.
    """

    test_fraction: Float | None = Field(default=None, gt=0, lt=1)
    split_seed: int = Field(default=0, ge=0, lt=2**32)


class OwnImages(SplitSettings, ImageDataset):
    """People's own image files: what is damaged stops the run, or is left out and reported."""

    decodes: ClassVar[bool] = True

    damaged: Literal["stop", "skip"] = "stop"


class StoreFiles(Settings):
    """One extractor's embeddings: HDF5 or npz files, or npy files with labels beside them."""

    train: str
    test: str | None = None
    val: str | None = None
    train_labels: str | None = None
    test_labels: str | None = None
    val_labels: str | None = None

    def locations(self) -> frozenset[str]:
        return frozenset(StoreFiles.model_fields)

    def files(self, root: Path | None) -> Iterator[tuple[str, str]]:
        """Yield every file that is named: the part that it plays, and the path."""
        named = {part: file for part, file in self.model_dump().items() if file is not None}
        yield from [(part, str(locate(file, root))) for part, file in named.items()]


@reader("features")
class FeaturesDataset(SplitSettings, DatasetSettings):
    """Embeddings from elsewhere: no images and no stage one.

    `stores` maps a name, which methods use where they otherwise name a backbone, to its files.
    Labels are numbers or texts; line c + 1 of the file `class_names` names class c of numbers.
    """

    source: Literal["features"]
    stores: dict[Name, StoreFiles] = Field(min_length=1)
    class_names: str | None = None

    def locations(self) -> frozenset[str]:
        return frozenset({"stores", "class_names"})

    def files(self, root: Path | None) -> Iterator[tuple[str, str]]:
        files = [
            (f"{name}/{part}", file)
            for name, store in self.stores.items()
            for part, file in store.files(root)
        ]
        if self.class_names is not None:
            files.append(("class_names", str(locate(self.class_names, root))))
        yield from files


Dataset = Annotated[DatasetSettings, Choice("source", "source")]
