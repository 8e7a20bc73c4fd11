"""Settings of networks that others trained: which one, what of it is trained here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from ltpipe.config.backbones.base import BackboneSettings, FeatureSettings, Rule, Schedule
from ltpipe.config.base import Float, Settings
from ltpipe.config.datasets import Size
from ltpipe.config.libraries import NetworkName, parse_network, torchvision_weights
from ltpipe.config.losses import Loss, check_head
from ltpipe.config.registry import system
from ltpipe.config.weights import (
    PACKAGES,
    existing_file,
    openai_file,
    package_file,
    timm_file,
    torch_hub_file,
)

_PACKAGE = "package:"
# What tags of timm call collections of images that are not ImageNet's.
_WEB = ("openai", "laion", "datacomp", "dfn", "metaclip", "webli", "inat", "ig1b", "yfcc")
# Of a network that is not trained, nothing of this means anything.
_TRAINING = (
    *("epochs", "batch_size", "learning_rate", "momentum", "nesterov", "weight_decay"),
    *("schedule", "compile", "precision", "head", "loss", "rule", "mixup"),
    *("scale", "start", "templates", "class_names"),
)


class BlockAdapter(Settings):
    """AdaptFormer beside every block: `bottleneck` is its width, by LIFT's rule unless given."""

    bottleneck: int | None = Field(default=None, ge=1)


class PretrainedFeatures(FeatureSettings):
    """What is cached of a pretrained network.

    `ensemble` is a number of pixels: logits of validation and test images are then the mean over
    five crops (corners and middle) of the image at a size that much larger, as LIFT tests.
    """

    batch_size: int = Field(default=64, ge=1)
    ensemble: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _has_no_defect(self) -> PretrainedFeatures:
        if self.train_bn:
            raise ValueError("train_bn: the defect is that of FFN's backbones")
        if self.batch_norm != "stored":
            raise ValueError("batch_norm: pretrained networks keep their statistics")
        return self


@system(
    "pretrained",
    paper="LIFT: Shi et al., ICML 2024; AdaptFormer: Chen et al., NeurIPS 2022",
    runs="ltpipe.stage1.pretrained",
)
class Pretrained(BackboneSettings):
    """A network of timm, torchvision or open_clip with the weights that others trained.

    `network` is LIBRARY:MODEL.TAG, such as timm:resnet50.a1_in1k; the tag names one of the
    model's published weights. `weights` says where these lie: `hub` is the library's cache, a path
    is a file of them, `package:NAME` an installed package; null leaves random numbers. With the
    weights come the statistics, interpolation and crop that they were trained with, whatever the
    data set says, and the size unless `size` gives another height and width. `projection: false`
    takes features of an open_clip tower before its projection to the texts' space.

    `trained: none` only reads features off it; `head` trains a classifier on images, `last-stage`
    what is before it too, `adapter` AdaptFormer in a vision transformer, `all` everything. A cosine
    head multiplies cosines by `scale` unless the loss has its own; its rows start at `random`, at
    the `class-means` of features, or at the classes' `texts`, prompts by `templates`.
    """

    system: Literal["pretrained"]
    loss: Loss | None = None
    rule: Rule = Rule(name="none")
    mixup: Float = Field(default=0.0, ge=0)
    weights: str | None = "hub"
    size: Size | None = None
    projection: bool = True
    trained: Literal["none", "head", "last-stage", "adapter", "all"] = "none"  # type: ignore[assignment]
    adapter: BlockAdapter = BlockAdapter()
    scale: Float = Field(default=25.0, gt=0)
    start: Literal["random", "class-means", "texts"] = "random"
    templates: list[str] = Field(default=["a photo of a {class}."], min_length=1)
    class_names: Literal["dataset", "imagenet"] = "dataset"
    epochs: int = Field(default=10, ge=1)
    learning_rate: Float = Field(default=0.01, gt=0)
    weight_decay: Float = Field(default=5e-4, ge=0)
    schedule: Schedule = Schedule(kind="cosine", warmup=0)
    features: PretrainedFeatures = PretrainedFeatures()

    @field_validator("network")
    @classmethod
    def _network_exists(cls, name: str) -> str:
        return str(parse_network(name))

    @field_validator("size")
    @classmethod
    def _size_is_positive(cls, size: list[int] | None) -> list[int] | None:
        if size is not None and min(size) < 1:
            raise ValueError("size must be positive")
        return size

    @model_validator(mode="after")
    def _network_fits(self) -> Pretrained:
        if self.attention is not None:
            raise ValueError(f"attention: {self.network} has no place for it; take resnet8 to 56")
        self._check_training()
        name = self.name()
        if name.library != "open_clip" and (self.start == "texts" or not self.projection):
            key = "start: texts" if self.projection else "projection"
            raise ValueError(f"{key} is for networks of open_clip, which have a text tower")
        if self.weights == "hub" and not name.tag:
            raise ValueError(
                f"network: {name} has several published weights; name them as in "
                "timm:resnet50.a1_in1k, torchvision:resnet50.IMAGENET1K_V2 or "
                "open_clip:ViT-B-32.openai, or give weights: PATH"
            )
        package = self.package()
        if package is not None:
            if package not in PACKAGES:
                package_file(package)
            if name.library != "timm" or name.model != PACKAGES[package].network:
                raise ValueError(
                    f"weights: {package} is for network: timm:{PACKAGES[package].network}"
                )
        return self

    def _check_training(self) -> None:
        """Refuse settings that mean nothing to what is trained."""
        given = [name for name in _TRAINING if name in self.model_fields_set]
        if self.trained != "adapter" and "adapter" in self.model_fields_set:
            raise ValueError("adapter belongs to trained: adapter")
        if self.trained == "none":
            if given:
                raise ValueError(f"{given[0]} means nothing to trained: none")
            if self.features.ensemble is not None:
                raise ValueError("features.ensemble averages logits, which trained: none has not")
            return
        if self.loss is None:
            raise ValueError(f"trained: {self.trained} needs a loss, as {{name: logit-adjustment}}")
        check_head(self.head, self.loss)
        self.check_start(self.rule)
        if self.head == "linear" and self.model_fields_set & {"scale", "start"}:
            raise ValueError("scale and start belong to head: cosine")
        if self.loss.takes_cosines and "scale" in self.model_fields_set:
            raise ValueError(f"scale: loss {self.loss.name!r} has its own")
        for template in self.templates:
            if "{class}" not in template:
                raise ValueError(f"template {template!r} has no {{class}}")

    def name(self) -> NetworkName:
        """Return the parts of the network's name."""
        return parse_network(self.network)

    def package(self) -> str | None:
        """Return the package that `weights` names, or None."""
        if self.weights is None or not self.weights.startswith(_PACKAGE):
            return None
        return self.weights.removeprefix(_PACKAGE)

    def weights_file(self) -> str | None:
        return None if self.weights == "hub" or self.package() else self.weights

    def has_seed(self) -> bool:
        return self.trained != "none" or self.weights is None

    def has_classifier(self) -> bool:
        return self.trained != "none"

    def files(self, root: Path | None) -> Iterator[tuple[str, str]]:
        path = self.find_weights()
        if path is not None:
            yield "weights", str(path)

    def find_weights(self) -> Path | None:
        """Return the file of the weights; None where there are none, or only a library knows it.

        Raises:
            InputError: the file is not there; says what to put where.
        """
        package, file = self.package(), self.weights_file()
        if package is not None:
            return package_file(package)
        if file is not None:
            return existing_file(file)
        return None if self.weights is None else self._published()

    def _published(self) -> Path | None:
        name = self.name()
        if name.library == "timm":
            return timm_file(f"{name.model}.{name.tag}")
        if name.library == "torchvision":
            url = torchvision_weights()[name.model][name.tag]
            return torch_hub_file(url.rpartition("/")[2], f"torchvision's weights {name}")
        return openai_file(name.model) if name.tag == "openai" else None

    def prepares_images(self) -> bool:
        return True

    def knows_imagenet(self) -> bool:
        # open_clip's are trained on images of the web, and some of timm's, which their tags name.
        name = self.name()
        elsewhere = any(word in name.tag for word in _WEB) and "in1k" not in name.tag
        return self.weights is not None and name.library != "open_clip" and not elsewhere

    def origin(self) -> str:
        """Return in words what the network starts from and what of it was trained here."""
        if self.weights is None:
            start = "random numbers, not pretrained"
        elif self.weights == "hub":
            start = "published weights"
        else:
            start = f"weights {self.package() or self.weights}"
        what = {"none": "not trained", "all": "all of it trained"}
        return f"{self.network}: {start}, {what.get(self.trained, f'{self.trained} trained')} here"
