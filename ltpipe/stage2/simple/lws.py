"""Learnable weight scaling: ``scale_c (w_c . x + b_c)`` with only the scales learned.

Kang et al., ICLR 2020, section 4.2; the scale multiplies the whole logit, as in the released code.
"""

from __future__ import annotations

from typing import Any

from ltpipe.artifacts.job import Job
from ltpipe.config.methods import LWS
from ltpipe.losses.building import build_loss
from ltpipe.stage2.core.classifiers import fit_scaled, logits
from ltpipe.stage2.core.one_backbone import finish, open_features
from ltpipe.stage2.core.retraining import recipe_of, sampling_of


def run(job: Job) -> dict[str, Any]:
    """Fit the scales of all sweep points at once and evaluate their last epoch."""
    features = open_features(job, LWS)
    settings, train = features.settings, features.train
    weights = fit_scaled(
        train,
        build_loss(settings.loss, train.class_counts),
        recipe_of(settings),
        sampling_of(settings),
        job.spec["seed"],
        job.device,
        trained=("scale",),
    )
    return finish(job, features, logits, weights)
