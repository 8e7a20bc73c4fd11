"""How far a method's confidence can be trusted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from ltpipe.evaluation.figures.base import Drawn, Material, file_of
from ltpipe.evaluation.metrics import reliability
from ltpipe.evaluation.style import COLOURS
from ltpipe.stage2.core.results import Predictions, read_predictions
from ltpipe.utils.errors import InputError

_BINS = 15
_COLUMNS = 2


def reliability_diagram(material: Material, settings: Mapping[str, Any]) -> Drawn:
    """Accuracy of each confidence bin beside its mean confidence, a panel a method.

    Bins of equal width as for the ECE (Guo et al., "On Calibration of Modern Neural Networks",
    ICML 2017, eqs. 1 to 3), over the test samples of all seeds.
    """
    dataset = settings["dataset"]
    edges = np.linspace(0, 1, _BINS + 1)
    tables = []
    for method in settings["methods"]:
        found = [read_predictions(folder) for folder in material.folders(dataset, method)]
        places = [_place(predictions, settings["at"]) for predictions in found]
        confidence = np.concatenate([p.confidence[k] for p, k in zip(found, places, strict=True)])
        wrong = np.concatenate(
            [p.predicted[k] != p.labels for p, k in zip(found, places, strict=True)]
        )
        # Two columns, the prediction's confidence first, stand for all classes: files of large
        # data sets hold no others.
        both = np.stack([confidence, np.zeros_like(confidence)], 1)
        share, mean, accuracy = reliability(both, wrong.astype(np.int64), _BINS)
        tables.append(
            pd.DataFrame(
                {
                    "method": method,
                    "above": edges[:-1],
                    "up_to": edges[1:],
                    "share": share,
                    "confidence": mean,
                    "accuracy": accuracy,
                }
            )
        )
    data = pd.concat(tables, ignore_index=True)
    columns = min(_COLUMNS, len(tables))
    rows = -(-len(tables) // columns)
    name = "-".join(["reliability", *settings["methods"], dataset]).lower()[:120]
    with file_of(material, name, data, width=3.1 * columns + 0.5, height=3.1 * rows) as figure:
        panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
        for axes, method, table in zip(panels, settings["methods"], tables, strict=False):
            axes.plot([0, 1], [0, 1], color="#888888", linewidth=1, linestyle="--")
            axes.bar(table["above"], table["accuracy"], 1 / _BINS, align="edge", color=COLOURS[0])
            axes.plot(table["confidence"], table["accuracy"], "o", color=COLOURS[1], markersize=4)
            gap = (table["share"] * (table["confidence"] - table["accuracy"]).abs()).sum()
            axes.set_title(f"{material.label(method)}\nECE {gap:.3f}", fontsize=10)
            axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
        for axes in panels[len(tables) :]:
            axes.set_axis_off()
        figure.supxlabel("confidence", fontsize=11)
        figure.supylabel("accuracy", fontsize=11)
    return Drawn(
        name,
        f"Reliability, {material.dataset(dataset)['label']}",
        f"Share of right answers in {_BINS} bins of confidence; dots stand at the mean confidence "
        "of a bin and lie on the dashed line where confidence is right. Test samples of all seeds "
        "together, so the ECE may lie below the mean of the seeds' own.",
    )


def _place(found: Predictions, at: Mapping[str, float]) -> int:
    """Return the place of the point that `at` names; a method that does not sweep it has one."""
    for place, point in enumerate(found.points):
        if all(point.get(key, value) == value for key, value in at.items()):
            return place
    raise InputError(f"figures: reliability: no point {dict(at)}; there are {found.points}")
