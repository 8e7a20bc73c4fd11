"""Which system each method belongs to, and where its figures stand in a report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Family:
    """A system: the anchor of its section, its title, what it does in a sentence."""

    anchor: str
    title: str
    text: str


BASELINES = Family(
    "baselines",
    "Baselines",
    "Classifiers on one backbone's features: as stage one left them, retrained or adjusted.",
)
# By the name that the registry gives as a method's paper.
SYSTEMS = {
    "FFN": Family(
        "ffn",
        "FFN: feature fusion",
        "Features of a cross-entropy and a KPS backbone, mixed under one cosine classifier.",
    ),
    "CWS": Family(
        "cws",
        "CWS: classwise splitting",
        "Large classes are split into subclasses in training; a mapping leads back to the classes.",
    ),
    "HRJBA": Family(
        "hrjba",
        "HRJBA: hybrid ResNet",
        "A branch for the head classes and one with attention for the tail classes, joined.",
    ),
    "ECVL": Family(
        "ecvl",
        "ECVL: vision and language",
        "An adapter on the features of fine-tuned vision-language towers.",
    ),
    "DLSA": Family(
        "dlsa",
        "DLSA: a cascade of flow filters",
        "Each filter takes the likeliest samples out for a classifier; the next sees the others.",
    ),
    "ltpipe": Family(
        "combined",
        "Combined: methods in one",
        "Predictions of several methods, multiplied with weights that held-out samples choose.",
    ),
}
# Figures of backbones that only one system has.
_OF_KIND = {"subclass_occupancy": "CWS"}


def family_of(paper: str) -> Family:
    """Return the family of the methods of a paper; one of nobody's own is a baseline."""
    return next((found for name, found in SYSTEMS.items() if paper.startswith(name)), BASELINES)


def families_of(
    results: Iterable[Mapping[str, Any]], kinds: Mapping[str, Mapping[str, str]]
) -> dict[Family, list[str]]:
    """Return the methods of a report's results by family, baselines first, then the systems.

    `kinds` says of each kind of method which `paper` it is from.
    """
    methods = {row["method"]: family_of(kinds[row["kind"]]["paper"]) for row in results}
    return {
        family: [name for name, found in methods.items() if found == family]
        for family in (BASELINES, *SYSTEMS.values())
        if family in methods.values()
    }


def family_of_figure(
    figure: Mapping[str, Any], families: Mapping[Family, list[str]]
) -> Family | None:
    """Return the section that a figure belongs to; None for the backbones' and the data's.

    Baselines beside one system are there for comparison; beside several systems, the figure goes
    to the baselines' section, which comes first.
    """
    if figure["kind"] in _OF_KIND:
        return SYSTEMS[_OF_KIND[figure["kind"]]]
    if figure.get("fused"):
        return SYSTEMS["FFN"]
    named = {figure.get("method"), *figure.get("methods", ())}
    for line in figure.get("lines", {}).values():
        named |= set(line)
    touched = [family for family, methods in families.items() if named & set(methods)]
    systems = [family for family in touched if family != BASELINES]
    if len(systems) == 1:
        return systems[0]
    return touched[0] if touched else None
