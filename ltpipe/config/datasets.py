"""Settings of the data sets."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from ltpipe.config.base import Float, Settings

Size = Annotated[list[int], Field(min_length=2, max_length=2)]


class InputSettings(Settings):
    """How an image becomes the network's input.

    `size` is height and width as the network sees them; `stored` those at which image files are
    decoded and kept (default: `size`). `fit` says how they come to that size: `cover` resizes the
    shorter side and keeps the middle, `stretch` resizes both sides and so changes the aspect
    ratio. `padding`, `flip`, `resized_crop` (of a share of the area within `crop_scale`, sampled by
    `interpolation`) and `color_jitter` are the training augmentation; the test view has none of
    them.
    """

    size: Size
    stored: Size | None = None
    channels: Literal[1, 3] = 3
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    fit: Literal["cover", "stretch"] = "cover"
    mean: list[Float] = Field(default=[0.485, 0.456, 0.406], min_length=1, max_length=3)
    std: list[Float] = Field(default=[0.229, 0.224, 0.225], min_length=1, max_length=3)
    padding: int = Field(default=0, ge=0)
    flip: bool = False
    resized_crop: bool = False
    crop_scale: Annotated[list[Float], Field(min_length=2, max_length=2)] = [0.08, 1.0]
    color_jitter: Float = Field(default=0.0, ge=0, lt=1)

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
        if self.stored is not None and any(
            s < i for s, i in zip(self.stored, self.size, strict=True)
        ):
            raise ValueError("stored must not be smaller than size")
        return self


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

    labels: ClassVar[frozenset[str]] = frozenset({"label", "benchmark", "note", "description"})

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


class DigitsDataset(DatasetSettings):
    source: Literal["digits"]
    input: InputSettings


class CifarDataset(DatasetSettings):
    source: Literal["cifar10", "cifar100"]
    input: InputSettings


class FolderDataset(DatasetSettings):
    """Images in train/val/test folders of class folders, or one folder of class folders.

    Where there is no test folder, `test_fraction` of each class (0.2 unless given) is set apart.
    """

    source: Literal["folder"]
    path: str
    test_fraction: Float | None = Field(default=None, gt=0, lt=1)
    split_seed: int = Field(default=0, ge=0, lt=2**32)
    input: InputSettings

    def locations(self) -> frozenset[str]:
        return frozenset({"path"})


class ListDataset(DatasetSettings):
    """Images named by list files with one `relative/path label` a line, as ImageNet-LT has them."""

    source: Literal["list"]
    path: str
    train_list: str
    val_list: str | None = None
    test_list: str
    class_names: str | None = None
    input: InputSettings

    def locations(self) -> frozenset[str]:
        return frozenset({"path", "train_list", "val_list", "test_list", "class_names"})


class TinyImageNetDataset(DatasetSettings):
    """Tiny-ImageNet-200; its validation images are the test set."""

    source: Literal["tiny-imagenet"]
    path: str = "tiny-imagenet-200"
    input: InputSettings

    def locations(self) -> frozenset[str]:
        return frozenset({"path"})


class VOCDataset(DatasetSettings):
    """VOC-LT: the images of VOC 2012 that show one class.

    `variant` says which objects count: all (`objects`), those not difficult (`non-difficult`) or
    the classes' list files (`image-labels`); `auto` takes the first that gives the published
    numbers, else `objects`. `ids` is a file with the training images' ids.
    """

    source: Literal["voc"]
    path: str = "VOCdevkit/VOC2012"
    variant: Literal["auto", "objects", "non-difficult", "image-labels"] = "auto"
    ids: str | None = None
    input: InputSettings

    def locations(self) -> frozenset[str]:
        return frozenset({"path", "ids"})


class MedMNISTDataset(DatasetSettings):
    """A MedMNIST file by its name without `.npz`; smaller images are padded to the stored size."""

    source: Literal["medmnist"]
    file: str = Field(pattern="^[A-Za-z0-9_-]+$")
    input: InputSettings


class StoreFiles(Settings):
    """One extractor's embeddings: HDF5 or npz files, or npy files with labels beside them."""

    train: str
    test: str
    val: str | None = None
    train_labels: str | None = None
    test_labels: str | None = None
    val_labels: str | None = None

    def locations(self) -> frozenset[str]:
        return frozenset(StoreFiles.model_fields)

    def files(self) -> list[str]:
        """Return every file that is named."""
        return [value for value in self.model_dump().values() if value is not None]


class FeaturesDataset(DatasetSettings):
    """Embeddings from elsewhere: no images and no stage one.

    `stores` maps a name, which methods use where they otherwise name a backbone, to its files.
    """

    source: Literal["features"]
    stores: dict[str, StoreFiles] = Field(min_length=1)
    class_names: str | None = None

    def locations(self) -> frozenset[str]:
        return frozenset({"stores", "class_names"})


ImageDataset = (
    DigitsDataset
    | CifarDataset
    | FolderDataset
    | ListDataset
    | TinyImageNetDataset
    | VOCDataset
    | MedMNISTDataset
)
Dataset = Annotated[ImageDataset | FeaturesDataset, Field(discriminator="source")]
