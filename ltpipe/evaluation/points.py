"""The rows of all results that readers compare: one protocol a method, the points that count."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pandas as pd


def shown_points(spec: Mapping[str, Any], records: pd.DataFrame) -> pd.DataFrame:
    """Return `records` of each method's own protocol and shown points, with a column `row`.

    Of a sweep, those are the points that some table of the spec names; all where none is named.
    `row` is the method's label with its point.
    """
    own = records.groupby(["dataset", "method"], sort=False)["protocol"].transform("first")
    chosen = records[records["protocol"] == own]
    named: dict[str, list[dict[str, float]]] = {}
    for table in spec["tables"].values():
        for row in table["rows"]:
            if row.get("at"):
                named.setdefault(row["method"], []).append(row["at"])
    texts = chosen["parameters"].unique()
    values = {text: json.loads(text) for text in texts}
    pairs = chosen[["method", "parameters"]].drop_duplicates().itertuples(index=False)
    kept = {
        (method, text)
        for method, text in pairs
        if not values[text]
        or method not in named
        or any(all(values[text].get(k) == v for k, v in at.items()) for at in named[method])
    }
    keys = pd.Series(
        list(zip(chosen["method"], chosen["parameters"], strict=True)), index=chosen.index
    )
    chosen = chosen[keys.isin(kept)]
    points = chosen["parameters"].map({text: _point(found) for text, found in values.items()})
    return chosen.assign(row=chosen["label"] + points)


def _point(values: Mapping[str, float]) -> str:
    if not values:
        return ""
    return " (" + ", ".join(f"{key} = {value:g}" for key, value in values.items()) + ")"
