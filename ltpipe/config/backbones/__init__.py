"""Settings of stage one: networks, losses, schedules, and the embeddings that are cached."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import TypeAdapter

from ltpipe.config.backbones.base import BackboneSettings, FeatureSettings, Rule, Schedule
from ltpipe.config.backbones.cws import CWS, Mapper
from ltpipe.config.backbones.hrjba import HybridBranch
from ltpipe.config.backbones.pretrained import Pretrained, PretrainedFeatures
from ltpipe.config.backbones.systems import BBN, Backbone, PaCo
from ltpipe.config.backbones.vision_language import (
    Ladder,
    VisionLanguage,
    VisionLanguageFeatures,
)
from ltpipe.config.choices import Choice

__all__ = [
    "BBN",
    "CWS",
    "AnyBackbone",
    "Backbone",
    "BackboneSettings",
    "FeatureSettings",
    "HybridBranch",
    "Ladder",
    "Mapper",
    "PaCo",
    "Pretrained",
    "PretrainedFeatures",
    "Rule",
    "Schedule",
    "VisionLanguage",
    "VisionLanguageFeatures",
    "backbone_settings",
]


AnyBackbone = Annotated[BackboneSettings, Choice("system", "system")]


def backbone_settings(values: Mapping[str, Any]) -> Any:
    """Return the settings of a backbone, defaults filled in; `system` is supervised unless given.

    Raises:
        pydantic.ValidationError: they are not those of a backbone.
    """
    return _ADAPTER.validate_python({"system": "supervised", **values})


_ADAPTER: TypeAdapter[Any] = TypeAdapter(AnyBackbone)
