"""An experiment's end: tables, figures, an index of artifacts, and one self-contained page."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from ltpipe.evaluation.artifacts import (
    STEPS,
    Artifact,
    Group,
    draw_graph,
    group_artifacts,
    index_of,
    read_artifacts,
)
from ltpipe.evaluation.draws import LEVEL
from ltpipe.evaluation.families import families_of, family_of_figure
from ltpipe.evaluation.figures import Drawn, Material, draw_figures
from ltpipe.evaluation.metrics import describe_groups, group_of_classes
from ltpipe.evaluation.page import render
from ltpipe.evaluation.points import shown_points
from ltpipe.evaluation.records import (
    read_class_counts,
    read_left_out,
    read_records,
    read_test_counts,
)
from ltpipe.evaluation.tables import build_table, to_markdown, to_text, wide
from ltpipe.evaluation.verdict import Judge, column_samples, mark_winners, verdicts
from ltpipe.utils.errors import InputError

# Methods that stand beside each other in the table of classes.
_MAX_COLUMNS = 16
_CALIBRATION = ["ece", "nll"]
_OF_PHOTOS = {"activation_maps"}


def write_report(
    spec: Mapping[str, Any], output: Path, expected_dir: Path, base: Path = Path()
) -> str:
    """Write tables/, figures/, index.csv and report.html to `output`; return the tables as text.

    Everything is made in a folder beside `output` and moved when it is whole. The same artifacts
    give the same bytes.

    Args:
        spec: what the workflow's plan says of the experiment.
        output: results/experiments/NAME.
        expected_dir: the papers' numbers.
        base: what the spec's folders are relative to.

    Raises:
        InputError: an artifact is missing or damaged, or a published table does not exist.
    """
    # Always of one name, so that what a killed run left is removed by the next one.
    work = output.with_name(f".{output.name}.tmp")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        text = _write(_in_order(spec), work, expected_dir, base)
        output.mkdir(exist_ok=True)
        for made in sorted(work.iterdir()):
            old = output / made.name
            if old.is_dir():
                shutil.rmtree(old)
            made.replace(old)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return text


def _in_order(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return the spec with its tables and data sets in the experiment file's order."""
    return {
        **spec,
        "tables": {name: spec["tables"][name] for name in spec["table_order"]},
        "datasets": {name: spec["datasets"][name] for name in spec["dataset_order"]},
    }


def _write(spec: Mapping[str, Any], work: Path, expected_dir: Path, base: Path) -> str:
    records = read_records(spec, base)
    (work / "tables").mkdir()
    (work / "figures").mkdir()
    shown, calibration, texts = [], [], []
    judge = Judge(spec, base)
    for name, settings in spec["tables"].items():
        table = build_table(records, settings, spec["datasets"], expected_dir, base)
        if table.empty:
            raise InputError(f"tables.{name}: none of its methods was run on its data sets")
        table = mark_winners(judge, records, table)
        if (table["protocol"] == "best_val").all():
            # What the line below the table says needs no tag in every row.
            table["label"] = table["label"].str.removesuffix(" [best_val]")
        title = settings["title"] or name
        note = _note(spec, table, settings, base)
        table.to_csv(work / "tables" / f"{name}.csv", index=False)
        (work / "tables" / f"{name}.md").write_text(
            to_markdown(table, title, note), encoding="utf-8"
        )
        said = verdicts(judge, records, table, spec["seeds"])
        shown.append(
            {
                "name": name,
                "title": title,
                "note": note,
                "wide": wide(table),
                "samples": column_samples(judge, table),
                "verdicts": said,
            }
        )
        texts.append("\n\n".join([to_text(table, title, note), *said]))
        if settings.get("kind") == "datasets":
            continue
        plain = {**settings, "metrics": _CALIBRATION, "expected": None}
        calibrated = build_table(records, plain, spec["datasets"], expected_dir)
        if calibrated["mean"].notna().any():
            calibration.append({"title": title, "wide": wide(calibrated)})
    drawn = draw_figures(Material(spec, records, base, work / "figures", expected_dir))
    artifacts = read_artifacts(spec, base)
    index_of(artifacts.values()).to_csv(work / "index.csv", index=False)
    groups = group_artifacts(artifacts.values())
    page = render(
        "report.html.jinja",
        spec=spec,
        tables=shown,
        calibration=calibration,
        **_sections(spec, drawn, artifacts, work / "figures"),
        classes=[_class_table(spec, records, name, base) for name in spec["datasets"]],
        datasets=[_dataset_row(spec, name, base) for name in spec["datasets"]],
        backbones=_backbones(spec, artifacts),
        graph=draw_graph(groups),
        kinds=_kinds(groups),
        steps=_steps(artifacts.values()),
        jobs=len(artifacts),
        seconds=_duration(sum(a.manifest["wall_s"] for a in artifacts.values())),
        devices=", ".join(_devices(artifacts.values())),
        versions=sorted(_versions(artifacts.values()).items()),
    )
    (work / "report.html").write_text(page, encoding="utf-8")
    return "\n\n".join(texts)


def _note(
    spec: Mapping[str, Any], table: pd.DataFrame, settings: Mapping[str, Any], base: Path
) -> str:
    """Say in words what the numbers of a table are."""
    # A row that has no such metric has no seeds either.
    seeds = sorted(set(table["seeds"]) - {0})
    over = "1 seed" if seeds == [1] else f"mean ± sd over {'/'.join(map(str, seeds))} seeds"
    protocols = ", ".join(name for name in dict.fromkeys(table["protocol"]) if name != "quoted")
    draws = int(table["draws"].max())
    if draws > 1:
        over = (
            f"mean ± half its {100 * LEVEL:g} % interval over draws of the training set and seeds, "
            f"{'/'.join(map(str, seeds))} runs of {draws} draws"
        )
    parts = [f"Test set, {over}; protocol: {protocols}"]
    if settings.get("kind") == "datasets":
        parts = ["Images drawn and tested on; image size: the height that networks see"]
    if settings.get("ranks"):
        images = "test" if settings["ranked_by"] == "test" else "training"
        parts.append(f"Classes by rank of {images} images; shares of all their test samples")
    if (table["protocol"] == "best_val").any():
        parts[0] += " (settings chosen on held-out training samples)"
    if set(settings["metrics"]) & {"many", "medium", "few"}:
        groups = {_groups(spec, name, base) for name in settings["datasets"]}
        parts.append("; ".join(sorted(groups)))
    if table["paper"].notna().any():
        parts.append(
            f"the paper's numbers (protocol: {table['paper_protocol'].iloc[0]}) with ours minus "
            "theirs"
        )
    if table["protocol"].str.startswith("oracle").any():
        parts.append(
            "[oracle]: told of each test sample whether its true class is a head or a tail class, "
            "so it competes with none but its like"
        )
    if (table["protocol"] == "quoted").any():
        parts.append("[quoted]: as the paper prints it, from other works; not run here")
    lost = table[table["converged"] < table["seeds"]].drop_duplicates(["dataset", "label"])
    if len(lost):
        reasons = "; ".join(dict.fromkeys(lost["diverged"]))
        parts.append(
            "–: did not converge; (k/n): k of n runs did, and the mean is theirs. Reasons: "
            + reasons
        )
    rows = {row["method"] for row in settings["rows"]}
    shown = [row for row in spec["results"] if row["method"] in rows]
    origins = dict.fromkeys(origin for row in shown for origin in row.get("origins", []))
    if origins:
        parts.append(f"Towers: {'; '.join(origins)}")
    notes = {spec["datasets"][name]["note"] for name in settings["datasets"]} - {""}
    return ". ".join([*parts, *sorted(notes)]) + "."


def _groups(spec: Mapping[str, Any], dataset: str, base: Path) -> str:
    described = spec["datasets"][dataset]
    names, _ = read_class_counts(base / described["folder"])
    return describe_groups(len(names), described["groups"])


def _sections(
    spec: Mapping[str, Any],
    drawn: list[Drawn],
    artifacts: Mapping[str, Artifact],
    folder: Path,
) -> dict[str, Any]:
    """Return a section for each system that was run, and the figures that stand elsewhere."""
    families = families_of(spec["results"], spec["kinds"])
    figures: dict[Any, list[dict[str, Any]]] = {}
    for settings, figure in zip(spec["figures"], drawn, strict=True):
        place: Any = family_of_figure(settings, families)
        if settings["kind"] == "reliability":
            place = "calibration"
        figures.setdefault(place, []).append(_embed(figure, settings["kind"], folder))
    first = {row["method"]: row for row in reversed(spec["results"])}
    sections = []
    for family, methods in families.items():
        rows = []
        for name in methods:
            kind = first[name]["kind"]
            rows.append(
                {
                    "label": first[name]["label"],
                    "kind": kind,
                    **spec["kinds"][kind],
                    "settings": _flat(artifacts[first[name]["folder"]].manifest["spec"]["method"]),
                }
            )
        sections.append({"family": family, "methods": rows, "figures": figures.pop(family, [])})
    return {
        "sections": sections,
        "reliability": figures.pop("calibration", []),
        # What no method of this experiment's own draws: data, backbones, training.
        "figures": [figure for found in figures.values() for figure in found],
    }


def _embed(figure: Drawn, kind: str, folder: Path) -> dict[str, Any]:
    svg = (folder / f"{figure.name}.svg").read_bytes()
    return {
        # Lines and colour maps may be turned for a dark page, photos may not.
        "drawn": kind not in _OF_PHOTOS,
        "name": figure.name,
        "title": figure.title,
        "caption": figure.caption,
        "svg": base64.b64encode(svg).decode("ascii"),
    }


def _dataset_row(spec: Mapping[str, Any], name: str, base: Path) -> dict[str, Any]:
    described = spec["datasets"][name]
    names, counts = read_class_counts(base / described["folder"])
    tests = read_test_counts(base / described["folder"])
    return {
        "label": described["label"],
        "test": sum(tests),
        "fewest": min(tests),
        "left_out": read_left_out(base / described["folder"]),
        "note": described["note"],
        "images": sum(counts),
        "classes": len(names),
        "largest": max(counts),
        "smallest": min(counts),
        "groups": describe_groups(len(names), described["groups"]),
    }


def _class_table(
    spec: Mapping[str, Any], records: pd.DataFrame, dataset: str, base: Path
) -> dict[str, Any]:
    """Return each class's mean accuracy for every method and point that some table shows.

    Of more methods than a page is wide, those that a figure shows class by class, or the first.
    """
    described = spec["datasets"][dataset]
    names, counts = read_class_counts(base / described["folder"])
    tests = read_test_counts(base / described["folder"])
    groups = group_of_classes(counts, described["groups"])
    chosen = shown_points(
        spec, records[(records["dataset"] == dataset) & (records["metric"] == "class_accuracy")]
    )
    rows = list(chosen["row"].unique())
    if len(rows) > _MAX_COLUMNS:
        drawn = {
            method
            for figure in spec["figures"]
            if figure["kind"] == "per_class_accuracy" and figure["dataset"] == dataset
            for method in figure["methods"]
        }
        preferred = list(chosen["row"][chosen["method"].isin(drawn)].unique())
        rows = (preferred or rows)[:_MAX_COLUMNS]
    means = chosen.groupby(["row", "class"])["value"].mean()
    order = sorted(range(len(names)), key=lambda index: (-counts[index], index))
    return {
        "title": described["label"],
        "columns": rows,
        "left_out": chosen["row"].nunique() - len(rows),
        "rows": [
            [names[index], counts[index], groups[index], tests[index]]
            + [_percent(means.get((row, index), float("nan"))) for row in rows]
            for index in order
        ],
    }


def _percent(value: float) -> str:
    return "–" if pd.isna(value) else f"{100 * value:.1f}"


def _flat(settings: Mapping[str, Any], prefix: str = "") -> str:
    """Return settings on one line, `key: value` with dots in the keys of nested ones."""
    parts = []
    for key, value in settings.items():
        if isinstance(value, Mapping):
            parts.append(_flat(value, f"{prefix}{key}."))
        else:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            parts.append(f"{prefix}{key}: {text}")
    return "; ".join(parts)


def _backbones(spec: Mapping[str, Any], artifacts: Mapping[str, Artifact]) -> list[dict[str, str]]:
    """Return each trained backbone's settings, a row for each way that it was trained."""
    rows: dict[tuple[str, str], None] = {}
    for row in spec["stage1"]:
        settings = artifacts[row["folder"]].manifest["spec"]["backbone"]
        rows[(row["backbone"], _flat(settings))] = None
    return [{"label": name, "settings": settings} for name, settings in rows]


def _kinds(groups: list[Group]) -> list[dict[str, Any]]:
    """Return the artifacts as a nested list: kinds, their groups, and what each group holds."""
    kinds = []
    for kind, title in STEPS.items():
        inside = [group for group in groups if group.kind == kind]
        if inside:
            kinds.append(
                {
                    "title": title,
                    "jobs": sum(len(group.members) for group in inside),
                    "groups": [_group(group) for group in inside],
                }
            )
    return kinds


def _group(group: Group) -> dict[str, Any]:
    seeds = sorted({a.seed for a in group.members if a.seed is not None})
    first = group.members[0]
    return {
        "title": first.title,
        "jobs": len(group.members),
        "seeds": ", ".join(map(str, seeds)) or "–",
        "seconds": _duration(group.seconds),
        "code": ", ".join(sorted({str(a.manifest["spec"]["code"]) for a in group.members})),
        "devices": ", ".join(_devices(group.members)),
        "folders": list(dict.fromkeys(a.folder.rsplit("/seed", 1)[0] for a in group.members)),
    }


def _steps(artifacts: Iterable[Artifact]) -> list[dict[str, Any]]:
    listed = list(artifacts)
    rows = []
    for kind, title in STEPS.items():
        chosen = [artifact for artifact in listed if artifact.kind == kind]
        if chosen:
            times = [artifact.manifest["wall_s"] for artifact in chosen]
            rows.append(
                {
                    "name": title,
                    "jobs": len(chosen),
                    "seconds": _duration(sum(times)),
                    "longest": _duration(max(times)),
                    "devices": ", ".join(_devices(chosen)),
                }
            )
    return rows


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def _devices(artifacts: Iterable[Artifact]) -> list[str]:
    return sorted({str(artifact.manifest["device"]) for artifact in artifacts})


def _versions(artifacts: Iterable[Artifact]) -> dict[str, str]:
    found: dict[str, set[str]] = {}
    for artifact in artifacts:
        for name, version in artifact.manifest["versions"].items():
            found.setdefault(name, set()).add(version)
    return {name: " / ".join(sorted(versions)) for name, versions in found.items()}
