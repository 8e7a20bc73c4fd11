"""An experiment's end: tables, figures, an index of artifacts, and one self-contained page."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from ltpipe.errors import InputError
from ltpipe.evaluation.figures import Drawn, Material, draw_figures
from ltpipe.evaluation.metrics import describe_groups, group_of_classes
from ltpipe.evaluation.records import read_class_counts, read_records
from ltpipe.evaluation.tables import build_table, to_markdown, to_text, wide

_TEMPLATES = Path(__file__).with_name("templates")
_STEPS = {
    "data": "draw subsets",
    "stage1": "train backbones",
    "features": "cache features",
    "import": "take over embeddings",
    "filter": "train filters",
    "stage2": "classify",
}

# Methods that stand beside each other in the table of classes.
_MAX_COLUMNS = 16


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
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as temporary:
        work = Path(temporary)
        text = _write(spec, work, expected_dir, base)
        output.mkdir(exist_ok=True)
        for made in sorted(work.iterdir()):
            old = output / made.name
            if old.is_dir():
                shutil.rmtree(old)
            made.replace(old)
    return text


def _write(spec: Mapping[str, Any], work: Path, expected_dir: Path, base: Path) -> str:
    records = read_records(spec, base)
    (work / "tables").mkdir()
    (work / "figures").mkdir()
    shown, texts = [], []
    for name in spec["table_order"]:
        settings = spec["tables"][name]
        table = build_table(records, settings, spec["datasets"], expected_dir)
        if table.empty:
            raise InputError(f"tables.{name}: none of its methods was run on its data sets")
        title = settings["title"] or name
        note = _note(spec, table, settings, base)
        table.to_csv(work / "tables" / f"{name}.csv", index=False)
        (work / "tables" / f"{name}.md").write_text(
            to_markdown(table, title, note), encoding="utf-8"
        )
        shown.append({"title": title, "note": note, "wide": wide(table)})
        texts.append(to_text(table, title, note))
    figures = draw_figures(Material(spec, records, base, work / "figures", expected_dir))
    index, manifests = _index(spec, base)
    index.to_csv(work / "index.csv", index=False)
    page = _render(
        spec=spec,
        methods=list(dict.fromkeys(result["method"] for result in spec["results"])),
        tables=shown,
        figures=[_embed(figure, work / "figures") for figure in figures],
        classes=[_class_table(spec, records, name, base) for name in spec["datasets"]],
        datasets=[_dataset_row(spec, name, base) for name in spec["datasets"]],
        steps=_steps(manifests),
        settings=_settings(spec, base),
        versions=sorted(_versions(manifests).items()),
    )
    (work / "report.html").write_text(page, encoding="utf-8")
    return "\n\n".join(texts)


def _render(**values: Any) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.jinja").render(**values)


def _note(
    spec: Mapping[str, Any], table: pd.DataFrame, settings: Mapping[str, Any], base: Path
) -> str:
    """Say in words what the numbers of a table are."""
    # A row that has no such metric has no seeds either.
    seeds = sorted(set(table["seeds"]) - {0})
    over = "1 seed" if seeds == [1] else f"mean ± sd over {'/'.join(map(str, seeds))} seeds"
    protocols = ", ".join(dict.fromkeys(table["protocol"]))
    parts = [f"Test set, {over}; protocol: {protocols}"]
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


def _embed(figure: Drawn, folder: Path) -> dict[str, str]:
    svg = (folder / f"{figure.name}.svg").read_bytes()
    return {
        "name": figure.name,
        "title": figure.title,
        "caption": figure.caption,
        "svg": base64.b64encode(svg).decode("ascii"),
    }


def _dataset_row(spec: Mapping[str, Any], name: str, base: Path) -> dict[str, Any]:
    described = spec["datasets"][name]
    names, counts = read_class_counts(base / described["folder"])
    return {
        "label": described["label"],
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

    Of more methods than a page is wide, those that a figure shows class by class.
    """
    described = spec["datasets"][dataset]
    names, counts = read_class_counts(base / described["folder"])
    groups = group_of_classes(counts, described["groups"])
    columns: dict[str, pd.Series] = {}
    wanted = [row for table in spec["tables"].values() for row in table["rows"] if "at" in row]
    of_dataset = records[
        (records["dataset"] == dataset)
        & (records["metric"] == "class_accuracy")
        & records["protocol"].str.startswith("last")
    ]
    if of_dataset["method"].nunique() > _MAX_COLUMNS:
        drawn = [
            method
            for figure in spec["figures"]
            if figure["kind"] == "per_class_accuracy" and figure["dataset"] == dataset
            for method in figure["methods"]
        ]
        of_dataset = of_dataset[of_dataset["method"].isin(drawn)]
    for (method, parameters), part in of_dataset.groupby(["method", "parameters"], sort=False):
        values = json.loads(str(parameters))
        label = part["label"].iloc[0]
        points = [row["at"] for row in wanted if row["method"] == method]
        if values:
            if not any(all(values.get(k) == v for k, v in point.items()) for point in points):
                continue
            label += " (" + ", ".join(f"{k} = {v:g}" for k, v in values.items()) + ")"
        columns[label] = part.groupby("class")["value"].mean()
    order = sorted(range(len(names)), key=lambda index: (-counts[index], index))
    rows = [
        [names[index], counts[index], groups[index]]
        + [_percent(column.get(index, float("nan"))) for column in columns.values()]
        for index in order
    ]
    return {"title": described["label"], "columns": list(columns), "rows": rows}


def _percent(value: float) -> str:
    return "–" if pd.isna(value) else f"{100 * value:.1f}"


def _index(
    spec: Mapping[str, Any], base: Path
) -> tuple[pd.DataFrame, list[tuple[str, dict[str, Any]]]]:
    """Return the artifacts that the experiment used, and their manifests by kind of step."""
    rows: list[dict[str, Any]] = []
    manifests = []
    listed = [
        *(("data", name, name, "", d["folder"]) for name, d in spec["datasets"].items()),
        *(("stage1", r["dataset"], r["backbone"], r["seed"], r["folder"]) for r in spec["stage1"]),
        *(
            ("features", r["dataset"], r["backbone"], r["seed"], r["folder"])
            for r in spec["features"]
        ),
        *(("stage2", r["dataset"], r["method"], r["seed"], r["folder"]) for r in spec["results"]),
    ]
    seen = set()
    for kind, dataset, name, seed, folder in listed:
        path = base / folder / "manifest.json"
        try:
            content = path.read_bytes()
            manifest = json.loads(content)
        except FileNotFoundError:
            raise InputError(f"{path}: no such file; the artifact is not finished") from None
        except ValueError:
            raise InputError(f"{path}: damaged; delete the folder and run again") from None
        rows.append(
            {
                "kind": kind,
                "dataset": dataset,
                "name": name,
                "seed": seed,
                "path": folder,
                "manifest_sha256": hashlib.sha256(content).hexdigest(),
            }
        )
        if folder not in seen:
            seen.add(folder)
            manifests.append((manifest["spec"]["kind"], manifest))
    return pd.DataFrame(rows), manifests


def _steps(manifests: list[tuple[str, dict[str, Any]]]) -> list[dict[str, Any]]:
    rows = []
    for kind, title in _STEPS.items():
        chosen = [manifest for found, manifest in manifests if found == kind]
        if chosen:
            rows.append(
                {
                    "name": title,
                    "jobs": len(chosen),
                    "seconds": f"{sum(manifest['wall_s'] for manifest in chosen):.1f}",
                    "devices": ", ".join(sorted({str(m.get("device")) for m in chosen})),
                }
            )
    return rows


def _settings(spec: Mapping[str, Any], base: Path) -> list[dict[str, str]]:
    """Return the settings of each method and backbone, once, as their specs have them."""
    rows: dict[tuple[str, str], None] = {}
    named = [(row["method"], row["folder"], "method") for row in spec["results"]]
    named += [(row["backbone"], row["folder"], "backbone") for row in spec["stage1"]]
    for name, folder, key in named:
        manifest = json.loads((base / folder / "manifest.json").read_text(encoding="utf-8"))
        rows[(name, json.dumps(manifest["spec"][key], sort_keys=True))] = None
    return [{"name": name, "text": text} for name, text in rows]


def _versions(manifests: list[tuple[str, dict[str, Any]]]) -> dict[str, str]:
    found: dict[str, set[str]] = {}
    for _, manifest in manifests:
        for name, version in manifest["versions"].items():
            found.setdefault(name, set()).add(version)
    return {name: " / ".join(sorted(versions)) for name, versions in found.items()}
