"""Zero-shot classification: the class whose text an image is nearest to, nothing trained.

Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021,
section 3.1. On towers fine-tuned before, it shows phase I alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from ltpipe.config.registry import method
from ltpipe.stage2.core.settings import OnTexts

if TYPE_CHECKING:
    from torch import Tensor

    from ltpipe.artifacts.job import Job
    from ltpipe.stage2.core.inference import Fitted, Samples


@method("zero-shot", paper="Radford et al., ICML 2021")
class ZeroShot(OnTexts):
    """The nearest class text of each image; nothing is trained."""

    kind: Literal["zero-shot"]


def run(job: Job) -> dict[str, Any]:
    """Evaluate cosines with the classes' texts."""
    from ltpipe.stage2.core.one_backbone import finish, open_features
    from ltpipe.stage2.core.texts import class_texts, towers_of

    features = open_features(job, ZeroShot)
    text, _ = class_texts(features.train)
    return finish(job, features, logits, {"text": text[None]}, towers=towers_of(features.train))


def logits(fitted: Fitted[ZeroShot], samples: Samples) -> Tensor:
    """Return the scaled cosines (N, C) with the classes' texts."""
    from ltpipe.stage2.core.texts import class_texts, text_logits

    text, scale = class_texts(samples["features"])
    return text_logits(samples["features"].features, text, scale)
