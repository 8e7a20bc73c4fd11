"""The card of a bundle: what it is, for whoever is handed it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ltpipe.bundles.format import CARD
from ltpipe.config.registry import find
from ltpipe.utils.io import write_text_atomic

_SHOWN = ("accuracy", "balanced_accuracy", "many", "medium", "few", "macro_f1", "ece")
_ROWS = 40


def write_card(bundle: Path, values: Mapping[str, Any]) -> None:
    """Write README.md of a bundle from what bundle.json says."""
    write_text_atomic(bundle / CARD, card(values, bundle))


def card(values: Mapping[str, Any], bundle: Path) -> str:
    """Return the card's Markdown."""
    kind = values["method"]["kind"]
    entry = find("method", kind)
    paper = f" ({entry.paper})" if entry.paper else ""
    names, counts = values["classes"]["names"], values["classes"]["counts"]
    source = values["dataset"].get("source", "unknown")
    parts = [
        f"# {values.get('label', kind)} on {source}",
        f"A classifier of {len(names)} classes, exported by ltpipe "
        f"{values['versions']['ltpipe']}. Method `{kind}`: {entry.summary}{paper}.",
        "```sh\nltpipe predict THIS_FOLDER IMAGES... --csv predictions.csv\n```",
        "## What it was trained on",
        f"{sum(counts)} training samples of the data set `{source}`: {max(counts)} of the largest "
        f"class, {min(counts)} of the smallest (seed {values['seed']}).",
        _backbones(values),
        _input(values),
        "## How well it does",
        _metrics(values),
        _classes(values),
        "## Limits",
        _limits(values),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _backbones(values: Mapping[str, Any]) -> str:
    lines = []
    for role, backbone in values["backbones"].items():
        settings = backbone["settings"]
        what = f"features of {backbone['dimension']} dimensions from elsewhere"
        if settings is not None:
            loss = settings.get("loss") or {}
            by = f", loss {loss['name']}" if "name" in loss else ""
            origin = backbone["attributes"].get("towers") or settings["network"]
            what = f"{origin}{by}, {backbone['dimension']} dimensions"
        lines.append(f"- `{role}`: {what}")
    return "\n".join(lines)


def _input(values: Mapping[str, Any]) -> str:
    rule = values["input"]
    if rule is None:
        return "It takes features, not images: those of the same extractors as above."
    height, width = rule["size"]
    stored = " x ".join(map(str, rule["stored"]))
    how = {
        "cover": f"resized to cover {stored}",
        "stretch": f"resized to {stored}",
        "pad": f"padded with zeros to {stored}",
    }[rule["fit"]]
    kind = "grey" if rule["channels"] == 1 else "RGB"
    return (
        f"Images are {how} ({rule['interpolation']}), and the middle {height} x {width} is taken, "
        f"{kind}, normalised by mean {rule['mean']} and standard deviation {rule['std']}."
    )


def _metrics(values: Mapping[str, Any]) -> str:
    found = values["metrics"]
    rows = [f"| {name.replace('_', ' ')} | {found[name]:.4f} |" for name in _SHOWN if name in found]
    groups = f"; {found['groups']}" if found.get("groups") else ""
    note = f"On the data set's test split, protocol `{values['protocol']}`{groups}."
    return "\n".join([note, "", "| metric | value |", "| --- | ---: |", *rows])


def _classes(values: Mapping[str, Any]) -> str:
    names, counts = values["classes"]["names"], values["classes"]["counts"]
    accuracies = values["metrics"]["class_accuracy"]
    rows = [
        f"| {name.replace('|', '/')} | {count} | {'–' if one is None else f'{one:.3f}'} |"
        for name, count, one in zip(names, counts, accuracies, strict=True)
    ]
    more = [f"\nThe other {len(rows) - _ROWS} classes are in bundle.json."]
    table = ["| class | training samples | test accuracy |", "| --- | ---: | ---: |", *rows[:_ROWS]]
    return "\n".join(table + (more if len(rows) > _ROWS else []))


def _limits(values: Mapping[str, Any]) -> str:
    counts = values["classes"]["counts"]
    lines = [
        "- It answers with one of its classes whatever it is shown; an image of none of them gets "
        "one too.",
        "- Accuracies are those of the test split above, of one seed; other images may look "
        "different.",
    ]
    error = values["metrics"].get("ece")
    if error is not None:
        lines.append(
            f"- Probabilities are off by {100 * error:.1f} points on average (expected calibration "
            "error)."
        )
    rare = sum(count <= 20 for count in counts)
    if rare:
        lines.append(f"- {rare} classes had 20 training samples or fewer; see their accuracies.")
    if values["onnx"] is not None:
        lines.append(
            f"- model.onnx gives the same probabilities to {values['onnx']['max_difference']:.1e}; "
            "it takes uint8 images already brought to size (or features)."
        )
    return "\n".join(lines)
