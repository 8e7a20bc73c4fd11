"""Settings of the stage-two methods.

A method's `backbones` maps each role that it gives a feature store to the name of a backbone
(or, for embeddings from elsewhere, of a store). Names are resolved by the plan and are no part
of an artifact's identity.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

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


Method = Annotated[
    OwnClassifier
    | FFN
    | LogitFusion
    | Classifier
    | LWS
    | MiSLAS
    | M2M
    | RIDE
    | TauNorm
    | LogitAdjusted
    | NCM
    | DLSA
    | HRJBA
    | OracleMask
    | LabelMapping
    | CachedSplitting
    | ECVL
    | Stacked
    | ZeroShot,
    Field(discriminator="kind"),
]


def settings_of(kind: str) -> type[MethodSettings]:
    """Return the settings class of a method's kind.

    Raises:
        InputError: no method is called that.
    """
    from ltpipe.config.registry import check_name

    known = {
        model.model_fields["kind"].annotation.__args__[0]: model  # type: ignore[union-attr]
        for model in _subclasses(MethodSettings)
        if "kind" in model.model_fields
    }
    return known[check_name("method", kind)]


def _subclasses(model: type[MethodSettings]) -> list[type[MethodSettings]]:
    found = []
    for child in model.__subclasses__():
        found += [child, *_subclasses(child)]
    return found
