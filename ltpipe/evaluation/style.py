"""How all pictures look."""

from __future__ import annotations

from typing import Any

import cycler

# Okabe and Ito's palette, which colour-blind readers can tell apart.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442"]
STYLE: dict[Any, Any] = {
    "figure.facecolor": "white",
    "axes.prop_cycle": cycler.cycler(color=COLOURS),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "axes.axisbelow": True,
    "font.size": 11,
    "legend.frameon": False,
    "svg.hashsalt": "ltpipe",
    "svg.fonttype": "path",
}
