"""Published weights that are named by a tag: the files in which their libraries keep them."""

from __future__ import annotations

import os
from pathlib import Path

from ltpipe.utils.errors import InputError
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
    home = os.environ.get("TORCH_HOME") or _cache() / "torch"
    path = Path(home, "hub", "checkpoints", name)
    if not path.is_file():
        raise InputError(
            f"torchvision's weights {network} {tag} are not there: put {path}; {FETCH}"
        )
    return path


def openai_file(network: str) -> Path | None:
    """Return the file in Hugging Face's cache of OpenAI's weights; None if they have none.

    The folders of that cache are documented to lie so.

    Raises:
        InputError: the file is not there.
    """
    repository = OPENAI_REPOSITORIES.get(network.removesuffix("-quickgelu"))
    if repository is None:
        return None
    hub = os.environ.get("HF_HUB_CACHE") or Path(
        os.environ.get("HF_HOME") or _cache() / "huggingface", "hub"
    )
    folder = Path(hub, f"models--{repository.replace('/', '--')}")
    current = folder / "refs/main"
    version = current.read_text(encoding="utf-8").strip() if current.is_file() else "*"
    for name in _OPEN_CLIP_FILES:
        if found := sorted(folder.glob(f"snapshots/{version}/{name}")):
            return found[0]
    raise InputError(
        f"OpenAI's weights of {network} are not in {hub}: put {_OPEN_CLIP_FILES[0]} of "
        f"huggingface.co/{repository} anywhere and set weights: PATH/TO/IT; {FETCH}"
    )


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
