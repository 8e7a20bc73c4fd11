"""The command line: what the workflow's rules call, and what people ask."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ltpipe import __version__
from ltpipe.errors import DiskError, InputError
from ltpipe.io import refusal

_DESCRIPTION = """\
Long-tailed image classification in two stages: train backbones once, cache their features, then
train and compare classifiers on the cache in seconds.

Most people run `snakemake --cores N`; its rules call the commands under "jobs" below, and each
line that Snakemake prints with -p can be run again by hand.
"""

_JOBS = {
    "draw": ("data", "draw the long-tailed training subset of a data set"),
    "train": ("stage1", "train a backbone on images (stage one)"),
    "embed": ("features", "dump a trained backbone's features to the feature store"),
    "import": ("import", "take over embeddings from elsewhere into the feature store"),
    "filter": ("filter", "train one of DLSA's filters on cached features"),
    "classify": ("stage2", "train and evaluate a classifier on cached features (stage two)"),
    "report": ("report", "write an experiment's tables, figures and report"),
    "overview": ("overview", "write the page over the experiments of a collection"),
}

# Jobs that read finished experiments and compute nothing.
_PAGES = ("report", "overview")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; 0 when it went well, 2 after a message about bad input, 74 about a disk."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    options = _parser().parse_args(arguments)
    options.arguments = arguments
    try:
        return options.run(options)
    except InputError as error:
        print(f"ltpipe: error: {_one_line(error)}", file=sys.stderr)
        return os.EX_IOERR if isinstance(error, DiskError) else 2
    except BrokenPipeError:
        # The reader of our output, such as `head`, has gone; there is nobody to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        reason = refusal(error)
        if reason is None:
            raise
        place = getattr(error, "filename", None) or "a file"
        print(f"ltpipe: error: {place}: {reason}", file=sys.stderr)
        return os.EX_IOERR


def _one_line(error: InputError) -> str:
    return " ".join(str(error).split("\n"))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ltpipe",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"ltpipe {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    command = commands.add_parser(
        "list",
        help="every data set, backbone, method, loss and network, with a line each",
        description="List what an experiment file may name: the catalogue and what it builds on.",
    )
    command.add_argument(
        "--catalogue", type=Path, default=None, metavar="DIR", help="default: ./config"
    )
    command.set_defaults(run=_list)

    command = commands.add_parser(
        "init",
        help="an experiment file for images or embeddings of your own",
        description="Look at a folder of images (PATH/CLASS/*.jpg or PATH/{train,val,test}/CLASS), "
        "a training list file, or embeddings (HDF5, npz, npy); say what they are like and write a "
        "commented experiment file for them.",
    )
    command.add_argument("data", type=Path, metavar="IMAGES_OR_FEATURES")
    command.add_argument("--output", type=Path, required=True, metavar="EXPERIMENT.yaml")
    command.add_argument("--force", action="store_true", help="replace the file if it exists")
    command.add_argument(
        "--images", type=Path, metavar="DIR", help="folder that a list file's paths start from"
    )
    command.add_argument(
        "--sample",
        type=int,
        default=2000,
        metavar="N",
        help="images to open at most; 0 opens all (default: 2000)",
    )
    command.add_argument(
        "--size", type=int, metavar="PIXELS", help="input side (default: by the images' size)"
    )
    command.add_argument(
        "--epochs", type=int, help="of stage one (default: by the number of images)"
    )
    command.add_argument(
        "--pretrained", action="store_true", help="start large networks from ImageNet's weights"
    )
    command.set_defaults(run=_init)

    command = commands.add_parser(
        "show",
        help="an experiment's artifacts: names, digests, folders, what is there",
        description="Show every artifact that an experiment file needs and whether it exists.",
    )
    command.add_argument("experiment", type=Path, help="the experiment file")
    command.add_argument("--catalogue", type=Path, default=None, metavar="DIR")
    command.add_argument(
        "--json", action="store_true", help="specs and code identities too, as JSON"
    )
    command.set_defaults(run=_show)

    command = commands.add_parser(
        "fetch",
        help="download an experiment's data sets and weights, and say what else to put where",
        description="Download what an experiment file needs and may be downloaded; list the rest.",
    )
    command.add_argument("experiment", type=Path, help="the experiment file")
    command.add_argument("--catalogue", type=Path, default=None, metavar="DIR")
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

    _add_upkeep(commands)
    for name, (kind, summary) in _JOBS.items():
        _add_job(commands, name, kind, summary)
    return parser


def _add_upkeep(commands: Any) -> None:
    command = commands.add_parser(
        "why",
        help="what an artifact was made from, and what would make it be rebuilt",
        description="Say what an artifact was made from and what would make it be rebuilt: the "
        "settings that differ, old and new, the modules that changed, the inputs.",
    )
    command.add_argument("path", type=Path, help="an artifact's folder, or a file in it")
    command.add_argument(
        "experiments", type=Path, nargs="*", help="experiment files, for what they ask for instead"
    )
    command.add_argument("--catalogue", type=Path, default=None, metavar="DIR")
    command.set_defaults(run=_why)

    command = commands.add_parser(
        "verify",
        help="check every hash of a results folder, an archived one too, or of one artifact",
        description="Check files against the hashes in their manifests and feature stores. "
        "Status 1 when something differs.",
    )
    command.add_argument("path", type=Path, nargs="?", default=Path("results"))
    command.set_defaults(run=_verify)

    command = commands.add_parser(
        "gc",
        help="list, and with --delete remove, artifacts that no experiment file needs",
        description="List what is under the results folder and no experiment file named needs. "
        "Nothing is removed without --delete.",
    )
    command.add_argument("experiments", type=Path, nargs="+", help="every experiment to keep")
    command.add_argument("--results", type=Path, default=Path("results"), metavar="DIR")
    command.add_argument("--catalogue", type=Path, default=None, metavar="DIR")
    command.add_argument("--delete", action="store_true", help="remove what is listed")
    command.set_defaults(run=_gc)


def _init(options: argparse.Namespace) -> int:
    from ltpipe.init.advice import advise
    from ltpipe.init.survey import survey
    from ltpipe.init.writing import check_output, describe, warnings, write_experiment

    check_output(options.output, options.force)
    found = survey(options.data, options.images, options.sample)
    advice = advise(found, options.size, options.epochs, options.pretrained)
    print("\n".join(describe(found)))
    print("\n".join(f"  - {reason}" for reason in advice.reasons))
    command = write_experiment(found, advice, options.output)
    for warning in warnings(found):
        print(f"warning: {warning}")
    print(f"\nwrote {options.output}; run it with\n  {command}")
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


def _add_job(commands: Any, name: str, kind: str, summary: str) -> None:
    command = commands.add_parser(
        name, help=f"job: {summary}", description=summary[0].upper() + summary[1:] + "."
    )
    command.add_argument(
        "--spec",
        required=True,
        metavar="JSON",
        help="what defines the artifact, as JSON; - reads it from standard input",
    )
    command.add_argument(
        "--code",
        metavar="HEX",
        help="the code identity that was planned with; other code is refused",
    )
    command.add_argument(
        "--input",
        action="append",
        default=[],
        metavar="ROLE=FOLDER",
        help="the artifact folder that plays a role; may be repeated",
    )
    command.add_argument("--output", required=True, type=Path, metavar="FOLDER")
    command.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    command.add_argument(
        "--device",
        default=os.environ.get("LTPIPE_DEVICE", "auto"),
        help="auto, cpu or cuda (default: $LTPIPE_DEVICE, else auto)",
    )
    if kind not in _PAGES:
        command.add_argument(
            "--data-root",
            default=None,
            metavar="DIR",
            help="where data sets lie (default: $LTPIPE_DATA, else data/raw)",
        )
    if kind == "stage1":
        command.add_argument(
            "--checkpoint-every", type=int, default=5, metavar="EPOCHS", help="default: 5"
        )
        command.add_argument(
            "--processes",
            type=int,
            default=1,
            metavar="N",
            help="train with N processes on this host, each with its own GPU if there are any; "
            "for several hosts start `ltpipe train` by torchrun (default: 1)",
        )
    if kind == "report":
        command.add_argument(
            "--expected",
            type=Path,
            default=Path("data/expected"),
            metavar="DIR",
            help="the papers' numbers (default: data/expected)",
        )
    command.set_defaults(run=_run_job, kind=kind)


def _list(options: argparse.Namespace) -> int:
    from ltpipe.config.experiment import read_catalogue
    from ltpipe.registry import REGISTRY

    folder = options.catalogue or Path("config")
    for section, entries in read_catalogue(folder).items():
        rows = {name: str(values.get("description", "")) for name, values in entries.items()}
        _print_rows(f"{section} (in {folder / section}/)", rows)
    for kind, known in REGISTRY.items():
        rows = {
            name: entry.summary + (f" ({entry.paper})" if entry.paper else "")
            for name, entry in known.items()
        }
        plural = "losses" if kind == "loss" else f"{kind}s"
        _print_rows(f"{plural} that settings may name", rows)
    return 0


def _print_rows(title: str, rows: dict[str, str]) -> None:
    print(title)
    width = max(map(len, rows), default=0)
    for name, text in rows.items():
        print(f"  {name:<{width}}  {text}".rstrip())
    print()


def _show(options: argparse.Namespace) -> int:
    from ltpipe.config.collection import load_workload
    from ltpipe.config.missing import describe_missing
    from ltpipe.config.plan import code_entries
    from ltpipe.presence import judge
    from ltpipe.provenance import code_identity

    load = load_workload(options.experiment, options.catalogue, judge)
    cells = list(load.everything.values())
    if options.json:
        rows = [
            {
                "kind": cell.kind,
                "folder": cell.folder,
                "done": _is_done(cell),
                "spec": cell.spec,
                "code": code_identity(code_entries(cell.spec)),
            }
            for cell in cells
        ]
        print(json.dumps(rows, indent=2))
        return 0
    if load.missing:
        print(describe_missing(load.missing, load.left_out) + "\n")
    for kind in ("data", "stage1", "import", "features", "filter", "stage2", *_PAGES):
        chosen = [cell for cell in cells if cell.kind == kind]
        if not chosen:
            continue
        done = sum(map(_is_done, chosen))
        print(f"{kind}: {len(chosen)} artifacts, {done} there")
        for cell in chosen:
            print(f"  {'+' if _is_done(cell) else '-'} {cell.folder}  {cell.title}")
    return 0


def _is_done(cell: Any) -> bool:
    from ltpipe.provenance import MANIFEST

    return Path(cell.folder, MANIFEST).is_file()


def _fetch(options: argparse.Namespace) -> int:
    from ltpipe.fetching import fetch

    lacking = fetch(options.experiment, options.catalogue)
    for why in lacking:
        print(f"- {why}")
    print("not all is there; see above" if lacking else "all is there")
    return 1 if lacking else 0


def _table(options: argparse.Namespace) -> int:
    path = options.folder / "summary.txt"
    if not path.is_file():
        raise InputError(f"{path}: no such file; run the experiment first")
    print(path.read_text(encoding="utf-8"))
    print(f"report: {options.folder / 'report.html'}")
    return 0


def _why(options: argparse.Namespace) -> int:
    from ltpipe.upkeep.why import explain_artifact

    for line in explain_artifact(options.path, options.experiments, options.catalogue):
        print(line)
    return 0


def _verify(options: argparse.Namespace) -> int:
    from ltpipe.upkeep.verify import verify

    found = verify(options.path)
    for line in found.notes:
        print(f"note: {line}")
    for line in found.wrong:
        print(f"wrong: {line}")
    checked = f"{found.artifacts} artifacts, {found.files} files, {found.size / 1e6:.1f} MB"
    print(f"checked {checked}: {f'{len(found.wrong)} wrong' if found.wrong else 'all as recorded'}")
    return 1 if found.wrong else 0


def _gc(options: argparse.Namespace) -> int:
    from ltpipe.upkeep.gc import find_waste, remove

    waste = find_waste(options.experiments, options.results, options.catalogue)
    for item in waste:
        print(f"{item.size / 1e6:10.1f} MB  {item.what:<12}  {item.path}")
    total = f"{len(waste)} items, {sum(item.size for item in waste) / 1e6:.1f} MB"
    if options.delete:
        remove(waste, options.results)
        print(f"removed {total}")
    else:
        print(f"{total}; --delete removes them" if waste else "nothing to remove")
    return 0


def _run_job(options: argparse.Namespace) -> int:
    from ltpipe.config.plan import code_entries
    from ltpipe.provenance import code_identity, code_modules, write_manifest

    if getattr(options, "processes", 1) > 1 and _torchrun_rank() is None:
        return _launch(options.processes, options.arguments)
    spec = _read_spec(options)
    entries = code_entries(spec)
    code = code_identity(entries)
    if options.code is not None and options.code != code:
        raise InputError(
            f"the code of {entries[0]} or of what it imports changed after this job was planned "
            f"(planned with {options.code}, now {code}); plan again"
        )
    existed = options.output.exists()
    options.output.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    try:
        if options.kind in _PAGES:
            facts, inputs, files = _page(options, spec)
        else:
            facts, inputs, files = _compute(options, spec, code)
        if _torchrun_rank() not in (None, 0):
            return 0
        write_manifest(
            options.output,
            spec=spec,
            code=code,
            modules=code_modules(entries),
            inputs=inputs,
            files=files,
            facts={"wall_s": round(time.perf_counter() - started, 3), **facts},
        )
    except BaseException:
        if not existed:
            _remove_if_empty(options.output)
        raise
    return 0


def _torchrun_rank() -> int | None:
    """Return this process's number among those that torchrun started; None without torchrun."""
    value = os.environ.get("RANK")
    return None if value is None or "TORCHELASTIC_RUN_ID" not in os.environ else int(value)


def _launch(processes: int, arguments: Sequence[str]) -> int:
    """Start this command again as several processes and wait for them."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={processes}", "-m", "ltpipe", *arguments]
    return subprocess.run(command).returncode


def _read_spec(options: argparse.Namespace) -> dict[str, Any]:
    text = sys.stdin.read() if options.spec == "-" else options.spec
    try:
        spec = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"--spec: not JSON: {error}") from None
    if not isinstance(spec, dict) or spec.get("kind") != options.kind:
        raise InputError(f'--spec: must be a JSON object with "kind": "{options.kind}"')
    return spec


def _read_inputs(options: argparse.Namespace) -> dict[str, Path]:
    from ltpipe.provenance import MANIFEST

    inputs = {}
    for item in options.input:
        role, separator, folder = item.partition("=")
        if not separator:
            raise InputError(f"--input {item}: write ROLE=FOLDER")
        if not Path(folder, MANIFEST).is_file():
            raise InputError(f"--input {item}: there is no finished artifact in {folder}")
        inputs[role] = Path(folder)
    return inputs


_Made = tuple[dict[str, Any], dict[str, Path], dict[str, Path]]


def _compute(options: argparse.Namespace, spec: dict[str, Any], code: str) -> _Made:
    """Run a job; return facts for the manifest, the folders of its inputs, and outside files."""
    import torch

    from ltpipe.config.plan import job_module, outside_files
    from ltpipe.data.sources import data_root, locate
    from ltpipe.job import Job
    from ltpipe.training.devices import describe, lease
    from ltpipe.training.distributed import is_launched, joined

    if is_launched() and spec["kind"] != "stage1":
        raise InputError("only `ltpipe train` runs as several processes")

    torch.set_num_threads(max(1, options.threads))
    inputs = _read_inputs(options)
    run = importlib.import_module(job_module(spec)).run
    # Drawing and taking over only move data; they leave GPUs to others.
    wanted = "cpu" if spec["kind"] in ("data", "import") else options.device
    root = data_root(options.data_root)
    _unfinish(options.output)
    with lease(wanted) as device, joined(device):
        facts = run(
            Job(
                spec=spec,
                inputs=inputs,
                output=options.output,
                device=device,
                root=root,
                code=code,
                checkpoint_every=getattr(options, "checkpoint_every", 5),
            )
        )
        facts = {"device": describe(device), **(facts or {})}
    return facts, inputs, {name: locate(name, root) for name in outside_files(spec)}


def _unfinish(folder: Path) -> None:
    """An artifact that is made again is unfinished from here on, whatever comes."""
    from ltpipe.provenance import MANIFEST

    (folder / MANIFEST).unlink(missing_ok=True)


def _page(options: argparse.Namespace, spec: dict[str, Any]) -> _Made:
    from ltpipe.config.plan import report_inputs
    from ltpipe.io import write_text_atomic

    _unfinish(options.output)
    if options.kind == "overview":
        from ltpipe.evaluation.overview import write_overview

        summary = write_overview(spec, options.output)
    else:
        from ltpipe.evaluation.report import write_report

        summary = write_report(spec, options.output, options.expected)
    write_text_atomic(options.output / "summary.txt", summary + "\n")
    print(summary)
    print(f"\nreport: {options.output / 'report.html'}")
    return {}, {folder: Path(folder) for folder in report_inputs(spec)}, {}


def _remove_if_empty(folder: Path) -> None:
    """Leave no empty folder behind where a job failed before it wrote anything."""
    try:
        folder.rmdir()
    except OSError:
        return


if __name__ == "__main__":
    sys.exit(main())
