"""Classes as texts: what every method on vision-language features reads from the store."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ltpipe.features.store import FeatureStore
from ltpipe.stage2.core.inference import Embedded
from ltpipe.utils.errors import InputError


def class_texts(store: FeatureStore | Embedded) -> tuple[Tensor, float]:
    """Return the classes' texts as unit vectors (C, D), and what cosines with them are times.

    Raises:
        InputError: the store has no texts.
    """
    if store.text is None or "logit_scale" not in store.attributes:
        raise InputError(
            f"{store.path}: holds no class texts; this method needs features of a backbone with "
            "system: vision-language"
        )
    text = torch.as_tensor(store.text).float()
    return F.normalize(text, dim=1), float(store.attributes["logit_scale"])


def text_logits(features: Tensor, text: Tensor, scale: float) -> Tensor:
    """Return scaled cosines (..., N, C) of features (..., N, D) with the classes' texts (C, D)."""
    return scale * F.normalize(features, dim=-1) @ text.T


def towers_of(store: FeatureStore) -> str:
    """Return in words whether the store's towers are pretrained, and from what."""
    return str(store.attributes.get("towers", "from elsewhere"))
