"""Settings of vision-language towers: contrastive fine-tuning, and what is cached of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from ltpipe.config.backbones.base import BackboneSettings, FeatureSettings, Schedule
from ltpipe.config.base import Float, Settings
from ltpipe.config.registry import check_name, system
from ltpipe.config.weights import existing_file, openai_file


class Ladder(Settings):
    """RandAugment views at rising strength: `strengths` rungs 1/S, 2/S, ... 1, `draws` of each.

    A view on rung s is what a sample of memory s gets by ECVL's eq. 10: each of `operations`
    draws is applied with probability s, at s times a uniform number of the operation's range
    (`random_strength: false` leaves the uniform number out). `floor` lifts the strength, on
    RandAugment's scale of 0 to 30.
    """

    strengths: int = Field(default=10, ge=1)
    draws: int = Field(default=2, ge=1)
    operations: int = Field(default=2, ge=1)
    floor: Float = Field(default=0.0, ge=0, le=30)
    random_strength: bool = True


class VisionLanguageFeatures(FeatureSettings):
    """What is cached of vision-language towers; `ladder` adds RandAugment views."""

    ladder: Ladder | None = None

    @model_validator(mode="after")
    def _has_no_defect(self) -> VisionLanguageFeatures:
        if self.train_bn:
            raise ValueError("train_bn: the defect is that of FFN's backbones")
        return self


@system(
    "vision-language",
    paper="ECVL, phase I; BALLAD: Ma et al., 2021",
    runs="ltpipe.stage1.vision_language",
)
class VisionLanguage(BackboneSettings):
    """An image and a text tower, fine-tuned on prompts of the class names (ECVL's phase I).

    `network` names towers of open_clip, `weights` a file for them or a tag of open_clip's
    published weights; without it they start from random numbers. `epochs: 0` trains nothing.
    `text_targets`: an image meets the prompts of all classes, or those of its batch, where all
    pairs of its class are right. `directions: both` adds the loss that retrieves images by text.
    `templates` turn a class name into prompts, `class_names: imagenet` takes open_clip's names of
    ImageNet's classes instead of the data set's. `batch_norm: train` is for towers trained from
    scratch.
    """

    system: Literal["vision-language"]
    loss: None = None
    epochs: int = Field(default=50, ge=0)
    batch_size: int = Field(default=512, ge=2)
    optimizer: Literal["adamw", "sgd"] = "adamw"
    learning_rate: Float = Field(default=1e-5, gt=0)
    weight_decay: Float = Field(default=1e-2, ge=0)
    schedule: Schedule = Schedule(kind="cosine", warmup=0)
    text_targets: Literal["all_classes", "in_batch"] = "all_classes"
    directions: Literal["image_to_text", "both"] = "image_to_text"
    logit_scale: Float = Field(default=100.0, gt=0)
    learn_scale: bool = False
    batch_norm: Literal["eval", "train"] = "eval"
    templates: list[str] = Field(default=["a photo of a {class}."], min_length=1)
    class_names: Literal["dataset", "imagenet"] = "dataset"
    features: VisionLanguageFeatures = VisionLanguageFeatures()

    @field_validator("network")
    @classmethod
    def _network_exists(cls, name: str) -> str:
        return check_name("tower", name)

    @field_validator("templates")
    @classmethod
    def _templates_have_a_place(cls, templates: list[str]) -> list[str]:
        for template in templates:
            if "{class}" not in template:
                raise ValueError(f"template {template!r} has no {{class}}")
        return templates

    @model_validator(mode="after")
    def _network_fits(self) -> VisionLanguage:
        if self.head != "linear" or self.trained != "all" or self.nesterov or self.compile:
            raise ValueError("head, trained, nesterov and compile mean nothing to these towers")
        if self.attention is not None:
            raise ValueError(f"attention: {self.network} has no place for it; take resnet8 to 56")
        if self.optimizer == "adamw" and "momentum" in self.model_fields_set:
            raise ValueError("momentum belongs to optimizer: sgd")
        if self.weights is not None and self.network.startswith("small-"):
            raise ValueError(f"weights: {self.network} starts from random numbers only")
        return self

    def files(self, root: Path | None) -> Iterator[tuple[str, str]]:
        path = None
        if self.weights_file() is not None:
            path = existing_file(str(self.weights))
        elif self.weights == "openai":
            path = openai_file(self.network)
        if path is not None:
            yield "weights", str(path)

    def origin(self) -> str:
        """Return in words what the towers start from and whether they were trained here."""
        if self.weights is None:
            start = "random initial weights, not pretrained"
        elif self.weights_file() is not None:
            start = f"weights from the file {self.weights}"
        else:
            start = f"pretrained weights {self.weights}"
        trained = f"{self.epochs} epochs of fine-tuning" if self.epochs else "not trained here"
        return f"{self.network}: {start}, {trained}"
