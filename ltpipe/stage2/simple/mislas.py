"""MiSLAS's second stage: label-aware smoothing on a scaled, slowly moving classifier.

Zhong et al., "Improving Calibration for Long-Tailed Recognition", CVPR 2021, section 3.3. Stage one
is trained with mixup. The paper also re-estimates BatchNorm's statistics, which needs the images
and is left out here.
"""

from __future__ import annotations

from typing import Any

from ltpipe.artifacts.job import Job
from ltpipe.config.methods import MiSLAS
from ltpipe.losses.smoothing import LabelAwareSmoothingLoss
from ltpipe.stage2.core.classifiers import fit_scaled, logits
from ltpipe.stage2.core.one_backbone import finish, open_features
from ltpipe.stage2.core.retraining import recipe_of, sampling_of


def run(job: Job) -> dict[str, Any]:
    """Fit the classifiers of all sweep points at once and evaluate their last epoch."""
    features = open_features(job, MiSLAS)
    settings, train = features.settings, features.train
    slow = settings.classifier_factor
    weights = fit_scaled(
        train,
        LabelAwareSmoothingLoss(train.class_counts, settings.head, settings.tail, settings.shape),
        recipe_of(settings, weight=slow, bias=slow),
        sampling_of(settings),
        job.spec["seed"],
        job.device,
        trained=("weight", "bias", "scale"),
    )
    return finish(job, features, logits, weights)
