"""A finished stage-two artifact, and what it was made from, found through the manifests."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import pandas as pd

from ltpipe.artifacts.divergence import read_divergence
from ltpipe.artifacts.reading import Artifact, open_artifact
from ltpipe.config.methods import settings_of
from ltpipe.plan.stages import MANIFEST
from ltpipe.stage2.core.results import under
from ltpipe.utils.errors import InputError


def open_result(folder: Path, seed: int | None) -> Artifact:
    """Return a stage-two artifact: `folder` itself, or that of its folder `seedN`.

    Raises:
        InputError: there is none, or it has several seeds and none is chosen.
    """
    if not (folder / MANIFEST).is_file():
        found = sorted(path.parent.name for path in folder.glob(f"seed*/{MANIFEST}"))
        if not found:
            raise InputError(
                f"{folder}: no finished artifact; name a folder such as "
                "results/stage2/DATASET/METHOD/DIGEST/seed0"
            )
        wanted = f"seed{seed}"
        if seed is None and len(found) == 1:
            wanted = found[0]
        if wanted not in found:
            has = "has several seeds" if seed is None else f"has no {wanted}"
            raise InputError(f"{folder} {has}; choose by --seed one of {', '.join(found)}")
        folder = folder / wanted
    artifact = open_artifact(folder)
    if artifact.spec.get("kind") != "stage2":
        raise InputError(
            f"{folder} is an artifact of {artifact.spec.get('kind')!r}; bundles are made of "
            "stage-two artifacts, results/stage2/DATASET/METHOD/DIGEST/seed0"
        )
    if seed is not None and artifact.spec.get("seed") != seed:
        raise InputError(f"{folder} is of seed {artifact.spec.get('seed')}, not of {seed}")
    return artifact


def result_settings(artifact: Artifact) -> Any:
    """Return the method's settings; its roles stand for the backbones' names.

    Raises:
        InputError: the method needs to be told what no user knows.
    """
    method = artifact.spec["method"]
    inputs = artifact.manifest["inputs"]
    settings = settings_of(method["kind"]).model_validate(
        {**method, "backbones": {role: role for role in under(inputs, "features")}}
    )
    if "oracle" in settings.protocol():
        raise InputError(
            f"{artifact.folder}: method {method['kind']} is told the group of every test image "
            "(protocol oracle), which nobody knows of a new one; it can't be exported"
        )
    return settings


def choose_point(artifact: Artifact, points: list[dict[str, float]], wanted: str | None) -> int:
    """Return the place of a sweep's point: by number, or by its parameters as NAME=VALUE,...

    Raises:
        InputError: none is chosen of several, no point or several are meant, or it diverged.
    """
    place = _match(artifact, points, wanted)
    lost = read_divergence(artifact.folder).get(place)
    if lost is not None:
        raise InputError(f"{artifact.folder}: point {place} did not converge: {lost}")
    return place


def _match(artifact: Artifact, points: list[dict[str, float]], wanted: str | None) -> int:
    listed = "; ".join(
        f"{place}: {', '.join(f'{key}={value:g}' for key, value in point.items()) or 'the only'}"
        for place, point in enumerate(points)
    )
    if wanted is None:
        if len(points) == 1:
            return 0
        raise InputError(
            f"{artifact.folder} is a sweep of {len(points)} points; choose one by --point "
            f"({listed})"
        )
    if wanted.isdecimal():
        found = [int(wanted)] if int(wanted) < len(points) else []
    else:
        asked = dict(_parameter(item) for item in wanted.split(","))
        found = [
            place
            for place, point in enumerate(points)
            if all(
                key in point and abs(point[key] - value) <= 1e-9 * max(1, abs(value))
                for key, value in asked.items()
            )
        ]
    if len(found) != 1:
        raise InputError(
            f"--point {wanted}: means {len(found) or 'none'} of the points of {artifact.folder} "
            f"({listed})"
        )
    return found[0]


def _parameter(item: str) -> tuple[str, float]:
    name, _, value = item.partition("=")
    try:
        return name.strip(), float(value)
    except ValueError:
        raise InputError(f"--point {item}: write a number, or NAME=VALUE") from None


def read_metrics(artifact: Artifact, place: int) -> dict[str, Any]:
    """Return the scalars of a point's test metrics, and the accuracy of every class."""
    table = pd.read_csv(artifact.file("metrics.csv"))
    table = table[(table["point"] == place) & (table["protocol"] == artifact.manifest["protocol"])]
    scalars = table[table["class"].isna() & table["value"].notna()]
    by_class = table[table["metric"] == "class_accuracy"].sort_values("class")
    return {
        **dict(zip(scalars["metric"], scalars["value"].astype(float), strict=True)),
        "class_accuracy": [None if pd.isna(value) else float(value) for value in by_class["value"]],
        "groups": _groups(artifact),
    }


def _groups(artifact: Artifact) -> str:
    with h5py.File(artifact.file("predictions.h5"), "r", locking=False) as file:
        return str(file.attrs.get("groups", ""))


def plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return attributes of an HDF5 file as JSON has them."""
    return {
        key: value.tolist() if hasattr(value, "tolist") else value for key, value in values.items()
    }
