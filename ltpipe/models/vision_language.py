"""Image and text towers of open_clip, and the prompts that class names become.

Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021.
Towers are open_clip's own class, and files of their weights are open_clip's own format both ways.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ltpipe.compat import import_open_clip
from ltpipe.config.backbones import VisionLanguage
from ltpipe.config.registry import towers
from ltpipe.models.published import clip_weights, load_published, read_published
from ltpipe.utils.errors import InputError
from ltpipe.utils.progress import say

MAX_LOGIT_SCALE = 100.0
_VOCABULARY = 49408
_PROMPTS_AT_ONCE = 1024
_SMALL_TEXT = {
    "context_length": 24,
    "vocab_size": _VOCABULARY,
    "width": 32,
    "heads": 2,
    "layers": 1,
}
_SMALL: dict[str, dict[str, Any]] = {
    "small-vit": {
        "embed_dim": 64,
        "vision_cfg": {
            "image_size": 8,
            "patch_size": 2,
            "layers": 2,
            "width": 64,
            "head_width": 16,
        },
        "text_cfg": _SMALL_TEXT,
    },
    # The smallest map that a ResNet of open_clip reduces to one place; smaller images are enlarged.
    "small-resnet": {
        "embed_dim": 64,
        "vision_cfg": {"image_size": 32, "patch_size": None, "layers": [1, 1, 1, 1], "width": 8},
        "text_cfg": _SMALL_TEXT,
    },
}
# What TorchScript archives hold beside weights.
_NOT_WEIGHTS = ("input_resolution", "context_length", "vocab_size")


@towers(
    "RN50",
    "RN50-quickgelu",
    "RN101",
    "RN101-quickgelu",
    "RN50x4",
    "RN50x4-quickgelu",
    "RN50x16",
    "RN50x16-quickgelu",
    "RN50x64",
    "RN50x64-quickgelu",
    "ViT-B-32",
    "ViT-B-32-quickgelu",
    "ViT-B-16",
    "ViT-B-16-quickgelu",
    "ViT-L-14",
    "ViT-L-14-quickgelu",
    "ViT-L-14-336",
    "ViT-L-14-336-quickgelu",
    "small-resnet",
    "small-vit",
    paper="Radford et al., ICML 2021",
)
def build_towers(settings: VisionLanguage, *, with_weights: bool = True) -> Any:
    """Return the towers of `settings`, an open_clip.CLIP in evaluation mode.

    They map images to features by `encode_images` and prompts to features by `encode_texts`.
    `with_weights=False` leaves weights random that are about to be replaced.

    Raises:
        InputError: weights are missing, unreadable or those of other towers, or the vocabulary is
            not the tokenizer's.
    """
    open_clip = import_open_clip()
    config = copy.deepcopy(
        _SMALL.get(settings.network) or open_clip.get_model_config(settings.network)
    )
    if config is None:
        raise InputError(
            f"network: the installed open_clip {open_clip.__version__} has no {settings.network}"
        )
    published = _published(settings)
    if published.get("quick_gelu"):
        config["quick_gelu"] = True
    path = None
    if with_weights and settings.weights is not None:
        file = settings.weights_file()
        path = _download(open_clip, settings, published) if file is None else Path(file)
    towers = open_clip.CLIP(**config).eval()
    words = open_clip.SimpleTokenizer().vocab_size
    if not towers.vocab_size == words == _VOCABULARY:
        raise InputError(
            f"network {settings.network}: its text tower knows {towers.vocab_size} tokens, "
            f"open_clip's tokenizer {words}; both must be CLIP's {_VOCABULARY}"
        )
    if path is not None:
        load_towers(towers, path)
        if not config.get("quick_gelu") and _were_half_precision(towers):
            say(
                f"warning: weights {path} were stored in half precision, as OpenAI's are, which "
                f"were trained with QuickGELU: if they are OpenAI's, set network: "
                f"{settings.network}-quickgelu"
            )
    with torch.no_grad():
        towers.logit_scale.fill_(math.log(settings.logit_scale))
    return towers


def _were_half_precision(towers: Any) -> bool:
    """Return whether rounding a large weight to half precision changes none of its numbers."""
    weight = towers.transformer.resblocks[0].mlp.c_fc.weight
    return torch.equal(weight, weight.half().to(weight.dtype))


def _published(settings: VisionLanguage) -> dict[str, Any]:
    """Return what open_clip knows of the published weights that `settings` names by a tag."""
    if settings.weights is None or settings.weights_file() is not None:
        return {}
    return clip_weights(settings.network, settings.weights, "weights")


def _download(open_clip: Any, settings: VisionLanguage, published: dict[str, Any]) -> Path:
    try:
        return Path(open_clip.pretrained.download_pretrained(published))
    # Every library on the way to the file fails in its own fashion.
    except Exception as error:
        source = published.get("hf_hub") or published.get("url", "")
        where = f"huggingface.co/{source}" if published.get("hf_hub") else source
        network = settings.network.removesuffix("-quickgelu")
        network += "-quickgelu" if published.get("quick_gelu") else ""
        raise InputError(
            f"weights {settings.weights!r} of {settings.network} can't be downloaded "
            f"({type(error).__name__}); fetch open_clip_model.safetensors from {where} where there "
            f"is a network, put it on this machine, and set weights: PATH/TO/IT, network: {network}"
        ) from None


def load_towers(towers: nn.Module, path: Path) -> None:
    """Load a file of weights in open_clip's format: safetensors, or a PyTorch file of tensors.

    Raises:
        InputError: the file is missing, damaged, an archive of code, or of other towers.
    """
    state = {k: v for k, v in read_published(path).items() if k not in _NOT_WEIGHTS}
    expected = towers.state_dict()
    for key in ("logit_scale", "logit_bias"):
        if key in state and key in expected:
            state[key] = state[key].reshape(expected[key].shape)
    load_published(towers, state, f"weights file {path}")


def encode_images(towers: Any, images: Tensor) -> Tensor:
    """Return the image tower's output (B, D), not of unit length, as the adapter takes it.

    Args:
        towers: what has the image tower as its `visual`.
        images: normalised (B, 3 or 1, H, W); grey is repeated, and images of another size than the
            tower's are resized (bicubic).
    """
    if images.shape[1] == 1:
        images = images.expand(-1, 3, -1, -1)
    size = towers.visual.image_size
    height, width = (size, size) if isinstance(size, int) else size
    if images.shape[2:] != (height, width):
        images = F.interpolate(images, (height, width), mode="bicubic", antialias=True)
    return towers.visual(images)


@dataclass(frozen=True)
class Prompts:
    """The prompts of C classes by T templates, in tokens.

    `rows` (U,) are the rows of the token table that occur, in rising order; `tokens` (C T, L) are
    places in `rows`, cut to the longest prompt. The last token of a prompt is the largest, also
    among the places.
    """

    texts: list[str]
    rows: Tensor
    tokens: Tensor
    classes: int


def build_prompts(towers: Any, class_names: Sequence[str], settings: VisionLanguage) -> Prompts:
    """Return the prompts of the classes, on the device of the towers.

    Raises:
        InputError: a prompt has more tokens than the text tower reads.
    """
    open_clip = import_open_clip()
    names = list(class_names)
    if settings.class_names == "imagenet":
        names = list(open_clip.IMAGENET_CLASSNAMES)
        if len(names) != len(class_names):
            raise InputError(
                f"class_names: imagenet names {len(names)} classes, the data set has "
                f"{len(class_names)}"
            )
    texts = [
        template.replace("{class}", name.replace("_", " "))
        for name in names
        for template in settings.templates
    ]
    context = towers.positional_embedding.shape[0]
    tokenizer = open_clip.SimpleTokenizer(context_length=context)
    for text in texts:
        length = len(tokenizer.encode(text)) + 2
        if length > context:
            raise InputError(
                f"prompt {text!r} has {length} tokens, {settings.network} reads {context}: "
                "shorten templates or the class's name"
            )
    tokens = tokenizer(texts)
    tokens = tokens[:, : int((tokens != 0).sum(1).max())]
    rows, places = torch.unique(tokens, sorted=True, return_inverse=True)
    device = towers.logit_scale.device
    return Prompts(texts, rows.to(device), places.to(device), len(names))


def encode_texts(towers: Any, prompts: Prompts, table: Tensor | None = None) -> Tensor:
    """Return the classes' texts as unit vectors (C, D): the mean direction of their prompts.

    The text tower is causal and read at the last token, so what follows it need not be computed.

    Args:
        table: (U, width) the token table's rows of `prompts`, where they are trained apart from it.
    """
    length = prompts.tokens.shape[1]
    shortened = {
        "token_embedding.weight": token_rows(towers, prompts) if table is None else table,
        "positional_embedding": towers.positional_embedding[:length],
        "attn_mask": towers.attn_mask[:length, :length],
    }
    units = torch.cat(
        [
            torch.func.functional_call(towers, shortened, kwargs={"text": part})[1]
            for part in prompts.tokens.split(_PROMPTS_AT_ONCE)
        ]
    )
    means = units.float().view(prompts.classes, -1, units.shape[1]).mean(1)
    return F.normalize(means, dim=1)


def token_rows(towers: Any, prompts: Prompts) -> Tensor:
    """Return the rows of the token table that the prompts hold, (U, width)."""
    return towers.token_embedding.weight.index_select(0, prompts.rows)
