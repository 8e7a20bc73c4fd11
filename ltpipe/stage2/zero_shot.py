"""Zero-shot classification: the class whose text an image is nearest to, nothing trained.

Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021,
section 3.1. On towers fine-tuned before, it shows phase I alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ltpipe.config.methods import ZeroShot
from ltpipe.job import Job
from ltpipe.stage2.decoupled import finish, open_features
from ltpipe.stage2.texts import class_texts, text_logits, towers_of


def run(job: Job) -> dict[str, Any]:
    """Evaluate cosines with the classes' texts."""
    features = open_features(job, ZeroShot)
    text, scale = class_texts(features.train)
    test = torch.from_numpy(features.test.features)

    def logits(place: int) -> Tensor:
        return text_logits(test, text, scale)

    return finish(job, features, logits, {"text": text[None]}, towers=towers_of(features.train))
