"""The artifacts behind an experiment: their manifests, what needs what, how long they took."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from ltpipe.artifacts.manifest import MANIFEST, read_manifest
from ltpipe.utils.io import file_sha256

# What each kind of job does, in the order in which they follow each other.
STEPS = {
    "data": "draw subsets",
    "stage1": "train backbones",
    "import": "take over embeddings",
    "features": "cache features",
    "filter": "train filters",
    "stage2": "classify",
}


@dataclass(frozen=True)
class Artifact:
    """One artifact folder: what it is called, its manifest, the folders that it was made from."""

    kind: str
    dataset: str
    name: str
    seed: int | None
    folder: str
    manifest: Mapping[str, Any]
    sha256: str
    needs: tuple[str, ...]

    @property
    def title(self) -> str:
        """The data set and, unless it is the data set itself, the name."""
        return self.name if self.kind == "data" else f"{self.name} on {self.dataset}"


def read_artifacts(spec: Mapping[str, Any], base: Path = Path()) -> dict[str, Artifact]:
    """Return every artifact that a report's spec leads to, by folder, in the order of STEPS.

    Those that the spec names, and through the manifests' inputs those that they were made from.
    Folders are relative to `base`.

    Raises:
        InputError: a manifest is missing or damaged.
    """
    names: dict[str, tuple[str, str]] = {}
    for row in [*spec["stage1"], *spec["features"]]:
        names.setdefault(row["folder"], (row["dataset"], row["backbone"]))
    for row in spec["results"]:
        names.setdefault(row["folder"], (row["dataset"], row["method"]))
    for name, described in spec["datasets"].items():
        names.setdefault(described["folder"], (name, name))
    found: dict[str, Artifact] = {}
    waiting = list(names)
    while waiting:
        folder = waiting.pop()
        if folder not in found:
            found[folder] = _read(folder, names.get(folder), base)
            waiting += found[folder].needs
    order = list(STEPS)
    listed = {folder: place for place, folder in enumerate(names)}
    return {
        artifact.folder: artifact
        for artifact in sorted(
            found.values(),
            key=lambda artifact: (
                order.index(artifact.kind),
                listed.get(artifact.folder, len(listed)),
                artifact.folder,
            ),
        )
    }


def _read(folder: str, names: tuple[str, str] | None, base: Path) -> Artifact:
    manifest = read_manifest(base / folder)
    if names is None:
        # results/KIND/DATASET/NAME/DIGEST, and for most /seedN
        parts = folder.split("/")
        names = (parts[2], parts[3]) if len(parts) > 4 else (parts[2], parts[2])
    return Artifact(
        kind=manifest["spec"]["kind"],
        dataset=names[0],
        name=names[1],
        seed=manifest["spec"].get("seed"),
        folder=folder,
        manifest=manifest,
        sha256=file_sha256(base / folder / MANIFEST),
        needs=tuple(dict.fromkeys(entry["path"] for entry in manifest["inputs"].values())),
    )


def index_of(artifacts: Iterable[Artifact]) -> pd.DataFrame:
    """Return a row an artifact: kind, dataset, name, seed, path, manifest_sha256."""
    return pd.DataFrame(
        [
            {
                "kind": artifact.kind,
                "dataset": artifact.dataset,
                "name": artifact.name,
                "seed": "" if artifact.seed is None else artifact.seed,
                "path": artifact.folder,
                "manifest_sha256": artifact.sha256,
            }
            for artifact in artifacts
        ]
    )


@dataclass(frozen=True)
class Group:
    """Artifacts that differ in their seeds or digests alone: one box of the drawing."""

    kind: str
    dataset: str
    name: str
    members: tuple[Artifact, ...]

    @property
    def seconds(self) -> float:
        return sum(artifact.manifest["wall_s"] for artifact in self.members)


def group_artifacts(artifacts: Iterable[Artifact]) -> list[Group]:
    """Return the artifacts by kind, data set and name."""
    groups: dict[tuple[str, str, str], list[Artifact]] = {}
    for artifact in artifacts:
        groups.setdefault((artifact.kind, artifact.dataset, artifact.name), []).append(artifact)
    return [Group(*key, tuple(members)) for key, members in groups.items()]


# Sizes of the drawing in CSS pixels; a column's boxes beyond so many become one.
_BOX, _BOX_HEIGHT, _GAP, _STEP, _TOP, _MAX_BOXES, _MAX_LETTERS = 176, 40, 64, 50, 26, 9, 25


@dataclass(frozen=True)
class Box:
    """A box of the drawing at (x, y): two lines of text, and the whole text for a pointer."""

    x: int
    y: int
    first: str
    second: str
    whole: str


@dataclass(frozen=True)
class Drawing:
    """The graph of artifacts, a column a kind: what a template needs to write it as SVG."""

    width: int
    height: int
    box: tuple[int, int]
    titles: list[tuple[int, str]]
    boxes: list[Box]
    edges: list[str]


def draw_graph(groups: list[Group]) -> Drawing:
    """Lay the groups out; of a column with many, the last box stands for all further ones."""
    kinds = [kind for kind in STEPS if any(group.kind == kind for group in groups)]
    boxes: list[Box] = []
    titles: list[tuple[int, str]] = []
    place: dict[str, tuple[int, int]] = {}
    tallest = 0
    for column, kind in enumerate(kinds):
        x = column * (_BOX + _GAP) + 1
        titles.append((x, STEPS[kind]))
        inside = [group for group in groups if group.kind == kind]
        whole = len(inside) <= _MAX_BOXES
        shown = inside if whole else inside[: _MAX_BOXES - 1]
        for row, group in enumerate(shown):
            boxes.append(_box(x, _TOP + row * _STEP, group))
            place |= {artifact.folder: (x, boxes[-1].y) for artifact in group.members}
        if not whole:
            rest = inside[len(shown) :]
            jobs = sum(len(group.members) for group in rest)
            y = _TOP + len(shown) * _STEP
            text = f"and {len(rest)} more"
            boxes.append(
                Box(x, y, text, _jobs(jobs), f"{text}: " + ", ".join(g.name for g in rest))
            )
            place |= {artifact.folder: (x, y) for g in rest for artifact in g.members}
        tallest = max(tallest, len(shown) + (not whole))
    ends = {
        (place[needed], place[artifact.folder]): None
        for group in groups
        for artifact in group.members
        for needed in artifact.needs
    }
    return Drawing(
        width=len(kinds) * (_BOX + _GAP) - _GAP + 2,
        height=_TOP + tallest * _STEP,
        box=(_BOX, _BOX_HEIGHT),
        titles=titles,
        boxes=boxes,
        edges=[_edge(start, end) for start, end in ends],
    )


def _box(x: int, y: int, group: Group) -> Box:
    name = group.name
    if len(name) > _MAX_LETTERS:
        name = name[: _MAX_LETTERS - 1] + "…"
    jobs = _jobs(len(group.members))
    room = _MAX_LETTERS + 2 - len(jobs)
    dataset = group.dataset if len(group.dataset) <= room else group.dataset[: room - 1] + "…"
    second = jobs if group.kind == "data" else f"{dataset} · {jobs}"
    return Box(x, y, name, second, f"{group.name} on {group.dataset}: {jobs}")


def _jobs(number: int) -> str:
    return f"{number} job" + "s" * (number != 1)


def _edge(start: tuple[int, int], end: tuple[int, int]) -> str:
    x1, y1 = start[0] + _BOX, start[1] + _BOX_HEIGHT // 2
    x2, y2 = end[0], end[1] + _BOX_HEIGHT // 2
    if x2 < x1:
        # From one filter of a cascade to the next: a small loop at the box's right side.
        return f"M{x1} {y1 - 8}c24 0 24 16 0 16"
    bend = min(_GAP, x2 - x1) // 2
    return f"M{x1} {y1}C{x1 + bend} {y1} {x2 - bend} {y2} {x2} {y2}"
