"""Settings of the stage-two methods.

A method's `backbones` maps each role that it gives a feature store to the name of a backbone
(or, for embeddings from elsewhere, of a store). Names are resolved by the plan and are no part
of an artifact's identity.
"""

from __future__ import annotations

from typing import Annotated

from ltpipe.config.choices import Choice
from ltpipe.config.methods.base import MethodSettings, OneBackbone
from ltpipe.config.methods.cws import CachedSplitting, LabelMapping
from ltpipe.config.methods.decoupled import (
    LWS,
    M2M,
    NCM,
    RIDE,
    Classifier,
    LogitAdjusted,
    MiSLAS,
    OwnClassifier,
    Retrained,
    TauNorm,
)
from ltpipe.config.methods.dlsa import DLSA, FlowFilter
from ltpipe.config.methods.fusion import FFN, LogitFusion
from ltpipe.config.methods.hrjba import HRJBA, OracleMask
from ltpipe.config.methods.stacked import Stacked
from ltpipe.config.methods.vision_language import ECVL, ZeroShot
from ltpipe.config.registry import load

__all__ = [
    "DLSA",
    "ECVL",
    "FFN",
    "HRJBA",
    "LWS",
    "M2M",
    "NCM",
    "RIDE",
    "CachedSplitting",
    "Classifier",
    "FlowFilter",
    "LabelMapping",
    "LogitAdjusted",
    "LogitFusion",
    "Method",
    "MethodSettings",
    "MiSLAS",
    "OneBackbone",
    "OracleMask",
    "OwnClassifier",
    "Retrained",
    "Stacked",
    "TauNorm",
    "ZeroShot",
    "settings_of",
]


Method = Annotated[MethodSettings, Choice("method", "kind")]


def settings_of(kind: str) -> type[MethodSettings]:
    """Return the settings class of a method's kind.

    Raises:
        InputError: no method is called that.
    """
    settings: type[MethodSettings] = load("method", kind)
    return settings
