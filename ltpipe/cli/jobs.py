"""The jobs that the workflow's rules call, from `draw` to `overview`."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ltpipe.utils.errors import InputError

JOBS = {
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

_Made = tuple[dict[str, Any], dict[str, Path], dict[str, Path]]


def add(commands: Any) -> None:
    """Add these commands to the parser."""
    for name, (kind, summary) in JOBS.items():
        _add_job(commands, name, kind, summary)


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


def _run_job(options: argparse.Namespace) -> int:
    from ltpipe.artifacts.manifest import code_identity, code_modules, write_manifest
    from ltpipe.plan.layout import code_entries

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
    from ltpipe.artifacts.manifest import MANIFEST

    inputs = {}
    for item in options.input:
        role, separator, folder = item.partition("=")
        if not separator:
            raise InputError(f"--input {item}: write ROLE=FOLDER")
        if not Path(folder, MANIFEST).is_file():
            raise InputError(f"--input {item}: there is no finished artifact in {folder}")
        inputs[role] = Path(folder)
    return inputs


def _compute(options: argparse.Namespace, spec: dict[str, Any], code: str) -> _Made:
    """Run a job; return facts for the manifest, the folders of its inputs, and outside files."""
    import torch

    from ltpipe.artifacts.job import Job
    from ltpipe.data.sources import data_root, locate
    from ltpipe.plan.layout import job_module, outside_files
    from ltpipe.training.devices import CPU, describe, lease
    from ltpipe.training.distributed import is_launched, joined
    from ltpipe.utils.memory import keep_freed_memory

    if is_launched() and spec["kind"] != "stage1":
        raise InputError("only `ltpipe train` runs as several processes")

    torch.set_num_threads(max(1, options.threads))
    keep_freed_memory()
    inputs = _read_inputs(options)
    module = importlib.import_module(job_module(spec))
    # Drawing and taking over only move data; they leave GPUs to others.
    wanted = "cpu" if spec["kind"] in ("data", "import") else options.device
    root = data_root(options.data_root)
    job = Job(
        spec=spec,
        inputs=inputs,
        output=options.output,
        device=CPU,
        root=root,
        code=code,
        checkpoint_every=getattr(options, "checkpoint_every", 5),
    )
    outside = {name: locate(name, root) for name in outside_files(spec)}
    _unfinish(options.output)
    with lease(wanted) as device, joined(device):
        facts = module.run(dataclasses.replace(job, device=device))
        facts = {"device": describe(device), **(facts or {})}
    return facts, inputs, outside


def _unfinish(folder: Path) -> None:
    """An artifact that is made again is unfinished from here on, whatever comes."""
    from ltpipe.artifacts.manifest import MANIFEST

    (folder / MANIFEST).unlink(missing_ok=True)


def _page(options: argparse.Namespace, spec: dict[str, Any]) -> _Made:
    from ltpipe.plan.layout import report_inputs
    from ltpipe.utils.io import write_text_atomic

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
