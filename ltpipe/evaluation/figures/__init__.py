"""The papers' figures, from the artifacts of finished jobs.

Each figure is written as PNG and SVG, with the data behind it as CSV, and with the same bytes for
the same data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import matplotlib

from ltpipe.evaluation.figures.accuracy import (
    confusion,
    per_class_accuracy,
    sweep_curve,
    tail_accuracy,
)
from ltpipe.evaluation.figures.base import Drawn, Material
from ltpipe.evaluation.figures.calibration import reliability_diagram
from ltpipe.evaluation.figures.cascade import (
    cascade_tsne,
    cluster_purity,
    cluster_sizes,
    probing,
    separation,
)
from ltpipe.evaluation.figures.data import class_distribution, tsne
from ltpipe.evaluation.figures.maps import activation_maps
from ltpipe.evaluation.figures.ranking import ranking
from ltpipe.evaluation.figures.splitting import setting_curve, subclass_occupancy
from ltpipe.evaluation.figures.training import training_curves
from ltpipe.evaluation.style import STYLE

__all__ = ["Drawn", "Material", "draw_figures"]


def draw_figures(material: Material) -> list[Drawn]:
    """Draw every figure of the spec, in its order."""
    draw: dict[str, Callable[[Material, Mapping[str, Any]], Drawn]] = {
        "class_distribution": class_distribution,
        "per_class_accuracy": per_class_accuracy,
        "sweep_curve": sweep_curve,
        "tail_accuracy": tail_accuracy,
        "tsne": tsne,
        "confusion": confusion,
        "reliability": reliability_diagram,
        "training_curves": training_curves,
        "setting_curve": setting_curve,
        "subclass_occupancy": subclass_occupancy,
        "cluster_sizes": cluster_sizes,
        "cluster_purity": cluster_purity,
        "separation": separation,
        "cascade_tsne": cascade_tsne,
        "probing": probing,
        "activation_maps": activation_maps,
        "ranking": ranking,
    }
    with matplotlib.rc_context(STYLE):
        return [draw[settings["kind"]](material, settings) for settings in material.spec["figures"]]
