"""From what the data are like to the settings of a first experiment, and why."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ltpipe.init.survey import ImageFacts, Survey
from ltpipe.utils.errors import InputError
from ltpipe.utils.machine import gpu_count

# Below this ratio of the largest to the smallest class, rebalancing has next to nothing to do;
# from the second on, everything of this package is worth its time.
_BALANCED, _LONG_TAILED = 2.0, 10.0
# A flow's clusters need samples: ImageNet-LT, on which DLSA was published, has 116 a class.
_DLSA_MEAN = 100
_SMALL_SET, _LARGE_SET = 2_000, 50_000
# From this side on, images go to torchvision's ResNet-50 at 224 pixels.
_LARGE_SIDE = 128
_IMAGENET = {"size": [224, 224], "stored": [256, 256], "resized_crop": True}


@dataclass(frozen=True)
class Method:
    """A classifier of the experiment: its name, its settings as YAML lines, what it is."""

    name: str
    lines: list[str]
    why: str


@dataclass(frozen=True)
class Advice:
    """Settings of the experiment; `reasons` say why, a line each.

    `input` and `backbone` are empty for embeddings. `fused` asks for FFN's second backbone.
    """

    groups: str
    metrics: list[str]
    methods: list[Method]
    reasons: list[str]
    input: dict[str, Any] = field(default_factory=dict)
    backbone: dict[str, Any] = field(default_factory=dict)
    fused: bool = False


def advise(
    survey: Survey, size: int | None = None, epochs: int | None = None, pretrained: bool = False
) -> Advice:
    """Choose network, input, length of training and methods by what `survey` found.

    Args:
        survey: what the data are like.
        size: side of the network's input; None chooses by the images' size.
        epochs: of stage one; None chooses by the number of images.
        pretrained: start from ImageNet's weights.

    Raises:
        InputError: an option does not fit the data.
    """
    reasons = [_imbalance_in_words(survey)]
    settings: dict[str, Any] = {}
    if survey.images is not None:
        if size is not None and not 8 <= size <= 1024:
            raise InputError(f"--size {size}: between 8 and 1024 pixels")
        if epochs is not None and epochs < 1:
            raise InputError(f"--epochs {epochs}: at least 1")
        settings = _stage_one(survey, survey.images, size, epochs, pretrained, reasons)
    elif size is not None or epochs is not None or pretrained:
        raise InputError(
            "--size, --epochs and --pretrained are for images: embeddings have no stage one"
        )
    fused = survey.images is not None and survey.imbalance >= _LONG_TAILED
    return Advice(
        groups=_groups(survey),
        metrics=_metrics(survey, reasons),
        methods=_methods(survey, fused, reasons),
        reasons=reasons,
        fused=fused,
        **settings,
    )


def _imbalance_in_words(survey: Survey) -> str:
    ratio = f"imbalance {survey.imbalance:.3g}"
    if survey.imbalance < _BALANCED:
        return (
            f"{ratio}: not long-tailed; expect little from rebalancing, so few methods are set up"
        )
    if survey.imbalance < _LONG_TAILED:
        return (
            f"{ratio}: mildly long-tailed; rebalanced classifiers are set up beside the plain one"
        )
    fused = "" if survey.images is None else " and FFN's fused features"
    return f"{ratio}: long-tailed; rebalanced classifiers{fused} are set up"


def _groups(survey: Survey) -> str:
    """Take the usual thresholds where all three groups have classes, else thirds."""
    return "thresholds" if all(survey.group_sizes("thresholds").values()) else "ranks"


def _metrics(survey: Survey, reasons: list[str]) -> list[str]:
    present = survey.test[survey.test > 0]
    if present.max() <= 1.5 * present.min():
        return ["accuracy", "many", "medium", "few"]
    reasons.append(
        "the test set is imbalanced, too: read balanced_accuracy (the mean over classes) first"
    )
    return ["balanced_accuracy", "accuracy", "many", "medium", "few", "macro_f1"]


def _stage_one(
    survey: Survey,
    images: ImageFacts,
    size: int | None,
    epochs: int | None,
    pretrained: bool,
    reasons: list[str],
) -> dict[str, Any]:
    sides = [size, size] if size is not None else _input_size(images)
    large = min(sides) >= _LARGE_SIDE
    number = int(survey.train.sum())
    if pretrained and not large:
        raise InputError(
            f"--pretrained: networks for {sides[0]} x {sides[1]} pixels have no published weights; "
            "add --size 224"
        )
    network = "resnet50" if large else "resnet8" if number < _SMALL_SET else "resnet32"
    backbone = _length(number, epochs, pretrained)
    backbone = {"network": network, "loss": {"name": "ce"}, **backbone}
    if pretrained:
        backbone["weights"] = "IMAGENET1K_V1"
    backbone["features"] = {"views": 5 if large else 9}
    short = np.median(images.sizes.min(axis=1))
    reasons.append(
        f"images of {short:.0f} pixels on the shorter side: {network} at {sides[0]} x {sides[1]}"
    )
    reasons.append(f"{number:,} training images; epochs: {backbone['epochs']}")
    if large and not pretrained:
        reasons.append(
            "ImageNet's weights help small sets most: --pretrained starts from them (fetched once)"
        )
    if large and not gpu_count():
        reasons.append(
            "no GPU is seen here, and a ResNet-50 is slow without one: --size 64 takes a small "
            "network"
        )
    return {"input": _input(images, sides, large), "backbone": backbone}


def _input_size(images: ImageFacts) -> list[int]:
    short = int(np.median(images.sizes.min(axis=1)))
    if short >= _LARGE_SIDE:
        return [224, 224]
    if short >= 64:
        return [64, 64]
    if short >= 32:
        return [32, 32]
    if (images.sizes == images.sizes[0]).all() and short >= 8:
        return [int(side) for side in images.sizes[0].clip(max=32)]
    return [max(8, short)] * 2


def _input(images: ImageFacts, sides: list[int], large: bool) -> dict[str, Any]:
    chosen: dict[str, Any]
    if large:
        stored = [side * 8 // 7 for side in sides]
        chosen = {**_IMAGENET, "size": sides, "stored": stored}
    else:
        chosen = {"size": sides, "padding": max(1, min(sides) // 8)}
    if images.grey and not large:
        mean, std = round(images.mean, 3), round(max(images.std, 0.001), 3)
        chosen |= {"channels": 1, "mean": [mean], "std": [std]}
    chosen["flip"] = not images.grey
    return chosen


def _length(number: int, epochs: int | None, pretrained: bool) -> dict[str, Any]:
    """Return how long and how fast to train `number` images."""
    if pretrained:
        chosen = {"epochs": 30, "batch_size": 64, "learning_rate": 0.01, "weight_decay": 5e-4}
    elif number < _SMALL_SET:
        chosen = {"epochs": 60, "batch_size": 32, "learning_rate": 0.1, "weight_decay": 5e-4}
    elif number < _LARGE_SET:
        chosen = {"epochs": 200, "batch_size": 128, "learning_rate": 0.1, "weight_decay": 2e-4}
    else:
        chosen = {"epochs": 90, "batch_size": 256, "learning_rate": 0.1, "weight_decay": 2e-4}
    if epochs is not None:
        chosen["epochs"] = epochs
    warmup = min(5, int(chosen["epochs"]) // 20)
    return {**chosen, "schedule": {"kind": "cosine", "warmup": warmup}}


def _methods(survey: Survey, fused: bool, reasons: list[str]) -> list[Method]:
    number = int(survey.train.sum())
    features = "ce" if survey.images is not None else "features"
    role = f"backbones: {{features: {features}}}"
    # As the catalogue's for CIFAR, and for small sets the same number of steps.
    length = ["epochs: 30", "batch_size: 32"] if number < _SMALL_SET else []
    if survey.images is None:
        length.append("views: plain")  # embeddings come without augmented views

    def retrained(name: str, use: str, why: str) -> Method:
        return Method(name, [f"use: {use}", role, *length], why)

    if survey.images is not None:
        methods = [Method("CE", ["use: backbone-head", role], "stage one's own classifier")]
    else:
        plain = ["kind: classifier", role, "sampler: shuffle", *length]
        methods = [Method("CE", plain, "a linear classifier without rebalancing")]
    methods.append(retrained("cRT", "crt", "a fresh classifier, every class drawn as often"))
    if survey.images is not None:
        methods.append(
            Method("LA", ["use: logit-adjusted", role], "stage one's scores less the log prior")
        )
    else:
        methods.append(Method("NCM", ["use: ncm", role], "the nearest class mean"))
    if survey.imbalance >= _BALANCED:
        methods.append(
            retrained("BalancedSoftmax", "balanced-softmax", "class sizes inside the softmax")
        )
    if survey.imbalance >= _LONG_TAILED and survey.images is not None:
        methods.append(retrained("MiSLAS", "mislas", "more smoothing for larger classes"))
    if fused:
        roles = "backbones: {ce: ce, kps: kps}"
        methods.append(
            # The released code's small steps suit schedules of some hundred thousand samples.
            Method("FFN", ["use: ffn-paper", roles, "w1: 0.5"], "both backbones' features fused")
        )
    mean = number / len(survey.train)
    if mean < _DLSA_MEAN or survey.imbalance < _BALANCED:
        if mean < _DLSA_MEAN:
            reasons.append(
                f"{mean:.0f} images a class on average: DLSA's filters want {_DLSA_MEAN}, left out"
            )
        return methods
    reasons.append(f"{mean:.0f} images a class on average: enough for DLSA's filters")
    return [*methods, Method("DLSA", _dlsa(number, role), "a cascade of flow filters")]


def _dlsa(number: int, role: str) -> list[str]:
    """Return the published settings for large sets, else those that small ones do not upset."""
    clusters = min(500, max(20, number // 230))
    if number >= _LARGE_SET:
        return ["use: dlsa", role, f"filter: {{clusters: {clusters}}}"]
    batch = 128 if number < _SMALL_SET else 512
    return ["use: dlsa-small", role, f"filter: {{clusters: {clusters}, batch_size: {batch}}}"]
