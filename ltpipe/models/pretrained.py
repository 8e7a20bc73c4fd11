"""Networks of timm, torchvision and open_clip by name, less the classifier that they came with.

A network's weights and how it sees an image come from one place, `NetworkInput` from what the
library says of the very weights that are named, so that they cannot be paired wrongly.
"""

from __future__ import annotations

import copy
import importlib
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ltpipe.compat import import_open_clip, import_timm, import_torchvision
from ltpipe.config.backbones import Pretrained
from ltpipe.config.datasets import NetworkInput
from ltpipe.config.libraries import NetworkName, torchvision_weights
from ltpipe.config.weights import PACKAGES, TIMM_FILES, torch_hub_file
from ltpipe.models.adaptformer import add_adapters
from ltpipe.models.heads import CosineHead, build_head
from ltpipe.models.published import clip_weights, load_published, read_published
from ltpipe.utils.errors import InputError, nearest

_FITS = {"center": "cover", "squash": "stretch", "shortest": "cover"}
_INTERPOLATIONS = ("bilinear", "bicubic")


class ScaledCosines(CosineHead):
    """Cosines (B, C) times a fixed scale; no bias."""

    def __init__(self, dim: int, classes: int, scale: float) -> None:
        super().__init__(dim, classes)
        self.scale = scale

    def forward(self, features: Tensor) -> Tensor:
        return self.scale * super().forward(features)


class Resize(nn.Module):
    """Normalised images (B, C, H, W) brought to a size, where they have another."""

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size

    def forward(self, images: Tensor) -> Tensor:
        if images.shape[2:] == self.size:
            return images
        return F.interpolate(images, self.size, mode="bicubic", antialias=True)


class PretrainedNetwork(nn.Module):
    """A network without the classifier that it came with, and the one that is trained here.

    `features` maps normalised images (B, 3, H, W) of any size to (B, D), `forward` to outputs
    (B, C) where there is a head.
    """

    def __init__(self, body: nn.Module, size: tuple[int, int]) -> None:
        super().__init__()
        self.body = body
        self.head: nn.Module | None = None
        self.resize = Resize(size)
        self.frozen: list[nn.Module] = []

    def features(self, images: Tensor) -> Tensor:
        """Return what the network's own classifier saw, (B, D)."""
        return self.body(self.resize(images))

    def forward(self, images: Tensor) -> Tensor:
        assert self.head is not None
        return self.head(self.features(images))

    def feature_dim(self) -> int:
        """Return D."""
        was_training = self.body.training
        with torch.no_grad():
            width = self.body.eval()(torch.zeros(1, 3, *self.resize.size)).shape[1]
        self.body.train(was_training)
        return width

    def train(self, mode: bool = True) -> PretrainedNetwork:
        """Set the mode of what is trained; what is frozen keeps its statistics."""
        super().train(mode)
        for module in self.frozen:
            module.eval()
        return self


def build_pretrained(settings: Pretrained) -> PretrainedNetwork:
    """Return the network of `settings` without weights from outside, nor a classifier.

    Raises:
        InputError: the library has no such network, or it can't take images of the given size.
    """
    name = settings.name()
    builders = {"timm": _timm, "torchvision": _torchvision, "open_clip": _open_clip}
    height, width = network_input(settings).size
    return PretrainedNetwork(builders[name.library](name, settings), (height, width))


def add_trained_parts(network: PretrainedNetwork, settings: Pretrained, classes: int) -> None:
    """Add adapters and the classifier of `settings`, and leave only what is trained a gradient.

    Raises:
        InputError: the network has no place for adapters, or no known last stage.
    """
    assert settings.loss is not None
    body = network.body
    dim = network.feature_dim()
    if settings.trained != "all":
        body.requires_grad_(False)
        network.frozen = [body]
    if settings.trained == "adapter":
        for adapter in add_adapters(body, classes, settings.adapter.bottleneck):
            adapter.requires_grad_()
    if settings.trained == "last-stage":
        trained = _last_stage(body, settings.name())
        for name, parameter in body.named_parameters():
            parameter.requires_grad_(name in trained)
        network.frozen = [
            module
            for name, module in body.named_modules()
            if name and not any(own.startswith(f"{name}.") for own in trained)
        ]
    if settings.head == "linear":
        network.head = build_head("linear", dim, classes)
    else:
        scale = 1.0 if settings.loss.takes_cosines else settings.scale
        network.head = ScaledCosines(dim, classes, scale)


def _last_stage(body: Any, name: NetworkName) -> frozenset[str]:
    """Return the names of the parameters from the last group on that holds a matrix."""
    if not hasattr(body, "group_matcher"):
        raise InputError(f"trained: last-stage is for networks of timm; {name} is none")
    from timm.models import group_parameters

    groups = group_parameters(body, body.group_matcher(coarse=True))
    shapes = {key: parameter.ndim for key, parameter in body.named_parameters()}
    last: list[str] = []
    for number in sorted(groups, reverse=True):
        last += [key for key in groups[number] if key in shapes]
        if any(shapes[key] > 1 for key in last):
            break
    return frozenset(last)


def load_pretrained(network: PretrainedNetwork, settings: Pretrained, path: Path) -> None:
    """Load a file of weights in the layout of the network's library.

    Raises:
        InputError: the file can't be used, or its weights are of another network.
    """
    state = read_published(path)
    origin = f"weights file {path}"
    body, library = network.body, settings.name().library
    if settings.package() is not None:
        state = _by_order(body, state, origin)
    elif library == "open_clip":
        state = _of_image_tower(state, origin)
        if not settings.projection:
            state.pop("proj", None)
    elif library == "timm":
        state = _in_timm_layout(body, state)
    known = body.state_dict()
    load_published(
        body, {k: v for k, v in state.items() if k in known or not _classifies(k)}, origin
    )


def download(settings: Pretrained) -> Path:
    """Download the published weights into the library's cache, and return the file.

    Raises:
        InputError: there is no network, or the library knows no file of them.
    """
    name = settings.name()
    try:
        if name.library == "timm":
            hub = importlib.import_module("huggingface_hub")
            return _first_of(hub, f"timm/{name.model}.{name.tag}")
        if name.library == "torchvision":
            url = torchvision_weights()[name.model][name.tag]
            torch.hub.load_state_dict_from_url(
                url, map_location="cpu", progress=False, check_hash=True, weights_only=True
            )
            return torch_hub_file(url.rpartition("/")[2], str(name))
        pretrained = import_open_clip().pretrained
        return Path(pretrained.download_pretrained(_clip_published(name)))
    # Every library on the way to a file fails in its own fashion.
    except Exception as error:
        raise InputError(
            f"weights of {name} can't be downloaded ({type(error).__name__}); fetch them where "
            "there is a network, and set weights: PATH/TO/THEM"
        ) from None


def _first_of(hub: Any, repository: str) -> Path:
    try:
        return Path(hub.hf_hub_download(repository, TIMM_FILES[0]))
    except hub.errors.EntryNotFoundError:
        return Path(hub.hf_hub_download(repository, TIMM_FILES[1]))


def network_input(settings: Pretrained) -> NetworkInput:
    """Return how the network sees an image: what its library says of the named weights.

    Raises:
        InputError: the library knows no such weights, or prepares images as nothing here does.
    """
    name = settings.name()
    found = {"timm": _timm_input, "torchvision": _torchvision_input, "open_clip": _clip_input}
    seen = found[name.library](name, settings)
    if (package := settings.package()) is not None:
        mean, std = PACKAGES[package].mean, PACKAGES[package].std
        seen = seen.model_copy(update={"mean": [mean] * 3, "std": [std] * 3})
    return seen


# ---- timm ------------------------------------------------------------------------------------


def _timm(name: NetworkName, settings: Pretrained) -> nn.Module:
    timm = import_timm()
    config = _timm_config(name)
    options: dict[str, Any] = {}
    if settings.size is not None and config.fixed_input_size:
        options["img_size"] = tuple(settings.size)
    try:
        return timm.create_model(name.model, pretrained=False, num_classes=0, **options)
    except TypeError:
        raise InputError(f"size: {name} takes images of {config.input_size[1:]} only") from None


def _timm_config(name: NetworkName) -> Any:
    """Return what timm says of the named weights.

    Raises:
        InputError: it has none of that tag, or there is no tag and its weights differ in how they
            see an image.
    """
    import_timm()
    from timm.models import get_arch_pretrained_cfgs

    # One without published weights is listed without a tag.
    known = get_arch_pretrained_cfgs(name.model)
    tags = {key.partition(".")[2]: config for key, config in known.items()}
    if name.tag:
        if name.tag not in tags:
            raise InputError(
                f"network: timm has no weights {name.tag!r} of {name.model}"
                f"{nearest(name.tag, tags)}; known: {', '.join(tags)}"
            )
        return tags[name.tag]
    seen = {(c.mean, c.std, c.interpolation, c.crop_pct, c.crop_mode) for c in tags.values()}
    if len(seen) != 1:
        raise InputError(
            f"network: the weights that timm has of {name.model} see images in different ways; "
            f"name one: {', '.join(f'{name.model}.{tag}' for tag in tags)}"
        )
    return next(iter(tags.values()))


def _timm_input(name: NetworkName, settings: Pretrained) -> NetworkInput:
    config = _timm_config(name)
    size = settings.size or list(config.input_size[1:])
    return _network_input(
        name,
        size,
        # As timm.data.create_transform has it.
        [math.floor(side / config.crop_pct) for side in size],
        config.interpolation,
        config.crop_mode,
        config.mean,
        config.std,
    )


def _in_timm_layout(body: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return published weights under timm's names, where they have those of their authors."""
    expected = body.state_dict()
    if all(name in state and state[name].shape == expected[name].shape for name in expected):
        return state
    change = getattr(sys.modules[type(body).__module__], "checkpoint_filter_fn", None)
    if change is None:
        return state
    try:
        return change(dict(state), body)
    # It reads what it takes for its own layouts; what is wrong with others is said by name.
    except Exception:
        return state


def _by_order(body: nn.Module, state: Mapping[str, Tensor], origin: str) -> dict[str, Tensor]:
    """Return weights that have other names in the same order, under the network's own."""
    expected = body.state_dict()
    # The last two are the classifier's.
    if len(state) != len(expected) + 2:
        raise InputError(f"{origin}: {len(state)} tensors, the network needs {len(expected) + 2}")
    return dict(zip(expected, state.values(), strict=False))


# ---- torchvision -----------------------------------------------------------------------------


def _torchvision(name: NetworkName, settings: Pretrained) -> nn.Module:
    body = import_torchvision().models.get_model(name.model, weights=None)
    if settings.size is not None and hasattr(body, "image_size"):
        raise InputError(f"size: {name} takes images of one size only")
    path = _last_linear(body, name)
    body.set_submodule(path, nn.Identity())
    return body


def _last_linear(body: nn.Module, name: NetworkName) -> str:
    paths = [path for path, module in body.named_modules() if isinstance(module, nn.Linear)]
    if not paths or body.get_submodule(paths[-1]).out_features != 1000:
        raise InputError(f"network: the classifier of {name} is no linear map of features")
    return paths[-1]


def _torchvision_input(name: NetworkName, settings: Pretrained) -> NetworkInput:
    weights = import_torchvision().models.get_model_weights(name.model)
    views = {entry.name: entry.transforms() for entry in weights}
    if name.tag:
        chosen = views[name.tag]
    else:
        seen = {str(view): view for view in views.values()}
        if len(seen) != 1:
            raise InputError(
                f"network: the weights that torchvision has of {name.model} see images in "
                f"different ways; name one: {', '.join(f'{name.model}.{tag}' for tag in views)}"
            )
        chosen = next(iter(seen.values()))
    crop, resized = chosen.crop_size[0], chosen.resize_size[0]
    size = settings.size or [crop, crop]
    return _network_input(
        name,
        size,
        [math.floor(side * resized / crop) for side in size],
        chosen.interpolation.value,
        "shortest",
        chosen.mean,
        chosen.std,
    )


# ---- open_clip -------------------------------------------------------------------------------


def _open_clip(name: NetworkName, settings: Pretrained) -> nn.Module:
    open_clip = import_open_clip()
    if settings.size is not None:
        raise InputError(f"size: the towers of {name} take images of one size only")
    config = copy.deepcopy(open_clip.get_model_config(name.model))
    if _clip_published(name).get("quick_gelu"):
        config["quick_gelu"] = True
    kind = open_clip.CustomTextCLIP if config.pop("custom_text", False) else open_clip.CLIP
    visual = kind(**config).visual
    if not settings.projection:
        if not isinstance(getattr(visual, "proj", None), nn.Parameter):
            raise InputError(f"projection: the image tower of {name} has none to leave out")
        visual.proj = None
    return visual


def _clip_published(name: NetworkName) -> dict[str, Any]:
    return clip_weights(name.model, name.tag, "network") if name.tag else {}


def _clip_input(name: NetworkName, settings: Pretrained) -> NetworkInput:
    open_clip = import_open_clip()
    tags = [name.tag] if name.tag else []
    tags = tags or open_clip.pretrained.list_pretrained_tags_by_model(name.model)
    keys = ("mean", "std", "interpolation", "resize_mode")
    # Where nothing is published, open_clip prepares images as it does by default.
    kinds = [_clip_published(NetworkName(name.library, name.model, tag)) for tag in tags]
    kinds = kinds or [asdict(open_clip.transform.PreprocessCfg())]
    seen: set[tuple[Any, ...]] = {tuple(kind.get(key) for key in keys) for kind in kinds}
    if len(seen) != 1:
        raise InputError(
            f"network: the weights that open_clip has of {name.model} see images in different "
            f"ways; name one: {', '.join(f'{name.model}.{tag}' for tag in tags)}"
        )
    mean, std, interpolation, mode = seen.pop()
    side = open_clip.get_model_config(name.model)["vision_cfg"]["image_size"]
    size = [side, side] if isinstance(side, int) else list(side)
    return _network_input(name, size, size, interpolation, mode, mean, std)


def _of_image_tower(state: Mapping[str, Tensor], origin: str) -> dict[str, Tensor]:
    prefix = "visual."
    found = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    if not found:
        raise InputError(f"{origin}: holds no image tower, nothing is called {prefix}...")
    return found


# ---- all -------------------------------------------------------------------------------------


def _network_input(
    name: NetworkName,
    size: Sequence[int],
    resized: Sequence[int],
    interpolation: str,
    mode: str,
    mean: Sequence[float],
    std: Sequence[float],
) -> NetworkInput:
    if mode not in _FITS or interpolation not in _INTERPOLATIONS:
        raise InputError(
            f"network: {name} was trained on images prepared as nothing here does (crop "
            f"{mode}, interpolation {interpolation})"
        )
    return NetworkInput.model_validate(
        {
            "size": list(size),
            "resized": list(resized),
            "interpolation": interpolation,
            "fit": _FITS[mode],
            "mean": [float(value) for value in mean],
            "std": [float(value) for value in std],
        }
    )


def _classifies(name: str) -> bool:
    """Return whether a tensor of this name belongs to a classifier, which is left out."""
    return name.split(".")[0] in ("fc", "classifier", "head", "heads")
