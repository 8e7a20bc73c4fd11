"""Which data sets and published weights are on this machine, at a glance: nothing is read whole.

This is for planning: it imports no torch and touches no network. Whether files are whole and the
right ones is for the jobs to find out.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ltpipe.config.backbones.vision_language import VisionLanguage
from ltpipe.config.datasets import DatasetSettings
from ltpipe.config.experiment import Head
from ltpipe.plan.missing import Absent
from ltpipe.utils.errors import InputError
from ltpipe.utils.paths import data_root

_FETCH = "`ltpipe fetch EXPERIMENT.yaml` downloads it where there is a network"
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


def judge(head: Head) -> Absent:
    """Return what says why a data set or a backbone's weights are not there, by its settings.

    Raises:
        InputError: the data root that the file or LTPIPE_DATA names is no folder.
    """
    root = data_root(head.data.root)

    def absent(settings: Any) -> str | None:
        try:
            if isinstance(settings, DatasetSettings):
                require_data(settings, root)
            else:
                require_weights(settings)
        except InputError as error:
            return str(error)
        return None

    return absent


def require_data(settings: DatasetSettings, root: Path | None) -> None:
    """Raise InputError, saying what to put where, if files of a data set are not there."""
    next(iter(settings.files(root)), None)


def require_weights(settings: Any) -> None:
    """Raise InputError, saying what to put where, if a backbone's weights are not there.

    Tags of other publishers than OpenAI and torchvision are for the job to find.
    """
    weights = getattr(settings, "weights", None)
    if weights is None:
        return
    if isinstance(settings, VisionLanguage):
        file = settings.weights_file()
        repository = OPENAI_REPOSITORIES.get(settings.network.removesuffix("-quickgelu"))
        if file is None and weights == "openai" and repository is not None:
            _require_snapshot(settings.network, repository)
    else:
        name = TORCHVISION_FILES.get((settings.network, weights))
        file = weights if name is None else None
        if name is not None:
            _require_checkpoint(f"{settings.network} {weights}", name)
    if file is not None and not Path(file).is_file():
        raise InputError(f"weights file {file} does not exist")


def _require_snapshot(network: str, repository: str) -> None:
    """Look into Hugging Face's cache, whose folders are documented to lie so."""
    hub = os.environ.get("HF_HUB_CACHE") or Path(
        os.environ.get("HF_HOME") or _cache() / "huggingface", "hub"
    )
    folder = Path(hub, f"models--{repository.replace('/', '--')}", "snapshots")
    if not any(path.is_file() for path in folder.glob("*/open_clip_*")):
        raise InputError(
            f"OpenAI's weights of {network} are not in {hub}: put open_clip_model.safetensors of "
            f"huggingface.co/{repository} anywhere and set weights: PATH/TO/IT; {_FETCH}"
        )


def _require_checkpoint(title: str, name: str) -> None:
    home = os.environ.get("TORCH_HOME") or _cache() / "torch"
    path = Path(home, "hub", "checkpoints", name)
    if not path.is_file():
        raise InputError(f"torchvision's weights {title} are not there: put {path}; {_FETCH}")


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
