"""What there is, what experiments need and gave: list, schema, show, fetch, table, ..."""

from __future__ import annotations

import argparse
import importlib
import json
from pathlib import Path
from typing import Any

from ltpipe.cli.arguments import add_experiment
from ltpipe.plan.stages import LATEST, MANIFEST, STAGES
from ltpipe.utils.errors import InputError, nearest


def add(commands: Any) -> None:
    """Add these commands to the parser."""
    command = commands.add_parser(
        "list",
        help="every data set, backbone, method, loss and network, with a line each",
        description="List what an experiment file may name: the catalogue and what it builds on.",
    )
    command.add_argument(
        "kind", nargs="?", metavar="KIND", help="only these, such as methods, losses or networks"
    )
    command.add_argument(
        "--plugins", type=Path, nargs="+", default=[], metavar="FILE", help="with their names, too"
    )
    command.add_argument(
        "--catalogue", type=Path, metavar="DIR", help="default: ./config, else that of the package"
    )
    command.set_defaults(run=_list)

    command = commands.add_parser(
        "schema",
        help="the JSON schema of experiment files, for editors",
        description="Print the JSON schema of an experiment file: ltpipe schema > FILE.",
    )
    command.set_defaults(run=_schema)

    command = commands.add_parser(
        "show",
        help="an experiment's artifacts: names, digests, folders, what is there",
        description="Show every artifact that an experiment file needs and whether it exists.",
    )
    add_experiment(command)
    command.add_argument(
        "--json", action="store_true", help="specs and code identities too, as JSON"
    )
    command.set_defaults(run=_show)

    command = commands.add_parser(
        "fetch",
        help="download an experiment's data sets and weights, and say what else to put where",
        description="Download what an experiment file needs and may be downloaded; list the rest.",
    )
    add_experiment(command)
    command.set_defaults(run=_fetch)

    command = commands.add_parser(
        "table",
        help="print a finished experiment's main table and where its report is",
        description="Print the main table of an experiment that has been run.",
    )
    command.add_argument("folder", type=Path, help="results/experiments/NAME")
    command.set_defaults(run=_table)

    command = commands.add_parser(
        "compare",
        help="methods of several experiments side by side, with paired differences",
        description="Compare the methods of finished experiments: means, paired differences over "
        "seeds to one of them with confidence intervals, wins and losses.",
    )
    command.add_argument(
        "experiments",
        type=Path,
        nargs="+",
        metavar="EXPERIMENT",
        help="results/experiments/NAME or an experiment file",
    )
    command.add_argument("--metric", default="accuracy", help="default: accuracy")
    command.add_argument(
        "--reference", metavar="METHOD", help="what to compare with (default: the first method)"
    )
    command.add_argument(
        "--level", type=float, default=0.95, help="of the confidence intervals (default: 0.95)"
    )
    command.add_argument(
        "--output", type=Path, metavar="FOLDER", help="also write CSV, Markdown and a page"
    )
    command.set_defaults(run=_compare)

    command = commands.add_parser(
        "pack",
        help="features and weights of a finished experiment in one archive that others go on from",
        description="Write a tar file with the feature stores and the backbones of an experiment, "
        "and an experiment file on them: whoever unpacks it runs every classifier without images.",
    )
    add_experiment(command)
    command.add_argument(
        "--output", type=Path, metavar="FILE", help="default: the experiment's name, .tar"
    )
    command.set_defaults(run=_pack)

    command = commands.add_parser(
        "explain",
        help="heat maps of a trained backbone on images of your own",
        description="Draw where a trained backbone sees a class in image files (CAM, Grad-CAM).",
    )
    command.add_argument("folder", type=Path, help="results/stage1/DATASET/BACKBONE/DIGEST/seed0")
    command.add_argument("images", type=Path, nargs="+", metavar="IMAGE")
    command.add_argument("--method", choices=["grad-cam", "cam"], default="grad-cam")
    command.add_argument(
        "--class", dest="label", metavar="NAME", help="default: the class that is predicted"
    )
    command.add_argument(
        "--channels", type=int, default=0, metavar="N", help="maps of N single channels, too"
    )
    command.add_argument(
        "--untrained", action="store_true", help="the same network before training, too"
    )
    command.add_argument("--output", type=Path, default=Path("heatmaps"), metavar="FOLDER")
    command.set_defaults(run=_explain)


def _pack(options: argparse.Namespace) -> int:
    from ltpipe.artifacts.archive import write_archive

    output = options.output or Path(options.experiment.stem).with_suffix(".tar")
    left = write_archive(options.experiment, output, options.catalogue)
    for name in left:
        print(f"left out, as it needs images or features of its own: {name}")
    return 0


def _list(options: argparse.Namespace) -> int:
    from ltpipe.config.experiment import find_catalogue, read_catalogue
    from ltpipe.config.plugins import load_plugins, locate_plugins
    from ltpipe.config.registry import KINDS, registered

    load_plugins(locate_plugins(map(str, options.plugins), Path()))
    folder = options.catalogue or find_catalogue(Path("experiment.yaml"))
    kinds = {"losses" if kind == "loss" else f"{kind}s": kind for kind in KINDS}
    sections = read_catalogue(folder)
    choices = list(dict.fromkeys([*sections, *kinds]))
    if options.kind not in (None, *choices):
        raise InputError(
            f"there are no {options.kind!r}{nearest(options.kind, choices)}; "
            f"known: {', '.join(choices)}"
        )
    for section, entries in sections.items():
        if options.kind in (None, section):
            rows = {name: str(values.get("description", "")) for name, values in entries.items()}
            _print_rows(f"{section} (in {folder / section}/)", rows)
    for plural, kind in kinds.items():
        if options.kind not in (None, plural):
            continue
        rows = {
            name: entry.summary + (f" ({entry.paper})" if entry.paper else "")
            for name, entry in registered(kind).items()
        }
        _print_rows(f"{plural} that settings may name", rows)
    return 0


def _schema(options: argparse.Namespace) -> int:
    from pydantic import TypeAdapter

    from ltpipe.config.backbones import AnyBackbone
    from ltpipe.config.datasets import Dataset
    from ltpipe.config.experiment import ExperimentFile
    from ltpipe.config.methods import Method
    from ltpipe.plan.workload import Collection

    schema = TypeAdapter(ExperimentFile | Collection).json_schema()
    # Sections of an experiment are checked once names are resolved; editors find the settings here.
    sections: tuple[Any, ...] = (Dataset, AnyBackbone, Method)
    for settings in sections:
        part = TypeAdapter(settings).json_schema()
        schema["$defs"].update(part.pop("$defs", {}))
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    print(json.dumps(schema, indent=1, sort_keys=True))
    return 0


def _print_rows(title: str, rows: dict[str, str]) -> None:
    print(title)
    width = max(map(len, rows), default=0)
    for name, text in rows.items():
        print(f"  {name:<{width}}  {text}".rstrip())
    print()


def _show(options: argparse.Namespace) -> int:
    from ltpipe.plan.availability import judge
    from ltpipe.plan.workload import load_workload

    load = load_workload(options.experiment, options.catalogue, judge)
    artifacts = list(load.everything.values())
    if options.json:
        rows = [
            {
                "kind": artifact.kind,
                "folder": artifact.folder,
                "done": _is_done(artifact),
                "spec": artifact.spec,
            }
            for artifact in artifacts
        ]
        print(json.dumps(rows, indent=2))
        return 0
    for line in load.notes:
        print(line + "\n")
    for kind in STAGES:
        chosen = [artifact for artifact in artifacts if artifact.kind == kind]
        if not chosen:
            continue
        done = sum(map(_is_done, chosen))
        print(f"{kind}: {len(chosen)} artifacts, {done} there")
        for artifact in chosen:
            print(f"  {'+' if _is_done(artifact) else '-'} {artifact.folder}  {artifact.title}")
    _print_methods(load)
    return 0


def _print_methods(load: Any) -> None:
    """Say which folder holds each method of each experiment, by the names that it has there."""
    from ltpipe.plan.choosing import results_of

    rows: dict[str, dict[str, list[str]]] = {}
    for result in results_of(load):
        name, label = result.row["method"], result.row["label"]
        title = name if label == name else f"{name} ({label})"
        title = f"{result.experiment}: {title} on {result.row['dataset']}"
        folder = result.folder.parent.as_posix()
        rows.setdefault(title, {}).setdefault(folder, []).append(str(result.row["seed"]))
    print("methods, and where they lie (catalogue names, which experiments share)")
    for title, folders in rows.items():
        print(f"  {title}")
        for folder, seeds in folders.items():
            several = f"seed{{{','.join(seeds)}}}" if len(seeds) > 1 else f"seed{seeds[0]}"
            print(f"    {folder}/{several}")


def _is_done(artifact: Any) -> bool:
    return Path(artifact.folder, MANIFEST).is_file()


def _fetch(options: argparse.Namespace) -> int:
    from ltpipe.data.fetching import fetch

    lacking = fetch(options.experiment, options.catalogue)
    for why in lacking:
        print(f"- {why}")
    print("not all is there; see above" if lacking else "all is there")
    return 1 if lacking else 0


def _table(options: argparse.Namespace) -> int:
    from ltpipe.artifacts.reading import checked_file

    folder = options.folder
    if (folder / LATEST).exists():
        folder = folder / LATEST
    path = folder / "summary.txt"
    if not path.is_file():
        raise InputError(f"{path}: no such file; run the experiment first")
    print(checked_file(folder, path.name).read_text(encoding="utf-8"))
    print(f"report: {folder / 'report.html'}")
    return 0


def _compare(options: argparse.Namespace) -> int:
    from ltpipe.evaluation.comparison import (
        compare,
        read_experiments,
        to_markdown,
        write_comparison,
    )

    records = read_experiments(options.experiments)
    found = compare(records, options.metric, options.reference, options.level)
    print(to_markdown(found), end="")
    if options.output is not None:
        write_comparison(found, list(dict.fromkeys(records["experiment"])), options.output)
        print(f"\npage: {options.output / 'comparison.html'}")
    return 0


def _explain(options: argparse.Namespace) -> int:
    heatmaps = importlib.import_module("ltpipe.evaluation.heatmaps")
    drawn = heatmaps.draw_heatmaps(
        options.folder,
        options.images,
        options.output,
        method=options.method,
        label=options.label,
        channels=options.channels,
        untrained=options.untrained,
    )
    for path in drawn:
        print(path)
    return 0
