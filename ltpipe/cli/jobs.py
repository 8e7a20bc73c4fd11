"""The jobs that the workflow's rules call, one for each stage, and by hand with the same line."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ltpipe.plan.stages import COMMANDS, MANIFEST, Stage
from ltpipe.utils.errors import DiskError, InputError


def add(commands: Any) -> None:
    """Add these commands to the parser."""
    for stage in COMMANDS.values():
        _add_job(commands, stage)
    command = commands.add_parser(
        "publish",
        description="Let results/experiments/NAME/latest lead to a report.",
    )
    command.add_argument("folder", type=Path, help="results/experiments/NAME/DIGEST")
    command.set_defaults(run=_publish)


def overview() -> str:
    """Return what `ltpipe --help` says of the jobs, apart from the commands that people give."""
    rows = {stage.command: stage.title for stage in COMMANDS.values()}
    rows["publish"] = "let results/experiments/NAME/latest lead to a report"
    width = max(map(len, rows))
    lines = [f"    {name:<{width}}  {title}" for name, title in rows.items()]
    return "\n".join(["jobs, which the workflow's rules call:", *lines])


def _add_job(commands: Any, stage: Stage) -> None:
    command = commands.add_parser(
        stage.command,
        description=stage.title[0].upper() + stage.title[1:] + ".",
    )
    command.add_argument(
        "--spec",
        action="append",
        required=True,
        metavar="JSON",
        help="what defines the artifact, as JSON; - reads it from standard input; one job makes "
        "several of the same inputs, each with an --output",
    )
    command.add_argument(
        "--input",
        action="append",
        default=[],
        metavar="ROLE=FOLDER",
        help="the artifact folder that plays a role; may be repeated",
    )
    command.add_argument(
        "--output",
        action="append",
        required=True,
        type=Path,
        metavar="FOLDER",
        help="the artifact's folder, which bears the digest of the spec",
    )
    command.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    if not stage.is_page:
        command.add_argument(
            "--device",
            default=os.environ.get("LTPIPE_DEVICE", "auto"),
            help="auto, cpu or cuda (default: $LTPIPE_DEVICE, else auto)",
        )
        command.add_argument(
            "--gpu-slots",
            type=int,
            default=1,
            metavar="N",
            help="share a GPU with up to N - 1 other jobs (default: 1, none)",
        )
        command.add_argument(
            "--data-root",
            default=None,
            metavar="DIR",
            help="where data sets lie (default: $LTPIPE_DATA, else data/raw)",
        )
    if stage.kind == "stage1":
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
    command.set_defaults(run=_run_job, stage=stage)


def _run_job(options: argparse.Namespace) -> int:
    from ltpipe.utils.sharing import sharing

    if getattr(options, "processes", 1) > 1 and _torchrun_rank() is None:
        return _launch(options)
    jobs = list(zip(options.spec, options.output, strict=False))
    if len(options.spec) != len(options.output):
        raise InputError("--spec and --output: each artifact has one of both")
    if len(jobs) == 1:
        _make(options, *jobs[0])
        return 0
    lost = []
    with sharing():
        for text, output in jobs:
            try:
                _make(options, text, output)
            except DiskError:
                raise
            except InputError as error:
                # The others may go well.
                print(f"ltpipe: error: {output}: {error}", file=sys.stderr)
                lost.append(output)
    if lost:
        raise InputError(f"{len(lost)} of {len(jobs)} artifacts were not made; see above")
    return 0


def _make(options: argparse.Namespace, text: str, output: Path) -> None:
    """Make one artifact, its manifest last."""
    from ltpipe.artifacts.manifest import write_manifest
    from ltpipe.plan.code import code_modules
    from ltpipe.plan.entries import code_entries

    spec = _read_spec(options.stage, text, output)
    inputs = _read_inputs(options, spec)
    started = time.perf_counter()
    with _folder(output):
        if options.stage.is_page:
            run_info = _page(options.stage, spec, output)
        else:
            run_info = _compute(options, spec, inputs, output)
        if _torchrun_rank() in (None, 0):
            write_manifest(
                output,
                spec=spec,
                modules=code_modules(code_entries(spec)),
                inputs=inputs,
                run_info={"wall_s": round(time.perf_counter() - started, 3), **run_info},
            )


def _torchrun_rank() -> int | None:
    """Return this process's number among those that torchrun started; None without torchrun."""
    value = os.environ.get("RANK")
    return None if value is None or "TORCHELASTIC_RUN_ID" not in os.environ else int(value)


def _launch(options: argparse.Namespace) -> int:
    """Start this command again as several processes, on GPUs of their own, and wait for them."""
    from ltpipe.training.devices import lease_several

    processes = options.processes
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={processes}", "-m", "ltpipe", *options.arguments]
    # The threads are those of the job: each process has its share.
    command += ["--threads", str(max(1, options.threads // processes))]
    with lease_several(options.device, processes) as environment:
        return subprocess.run(command, env={**os.environ, **environment}).returncode


def _read_spec(stage: Stage, text: str, output: Path) -> dict[str, Any]:
    """Return the spec, held against the code that is here now and the folder that it is to fill."""
    from ltpipe.config.plugins import load_plugins
    from ltpipe.plan.code import code_identity
    from ltpipe.plan.entries import code_entries
    from ltpipe.plan.specs import digest_of

    try:
        spec = json.loads(sys.stdin.read() if text == "-" else text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"--spec: not JSON: {error}") from None
    if not isinstance(spec, dict) or spec.get("kind") != stage.kind:
        raise InputError(f'--spec: must be a JSON object with "kind": "{stage.kind}"')
    load_plugins(spec.get("locations", {}).get("plugins", []))
    code = code_identity(code_entries(spec))
    if spec.get("code") != code:
        raise InputError(
            f"the code that makes {output} changed after this job was planned (planned "
            f"with {spec.get('code')}, now {code}); plan again"
        )
    parts = Path(os.path.abspath(output)).parts[-2:]  # noqa: PTH100 - links stay as named
    seed = [f"seed{spec['seed']}"] if "seed" in spec else []
    ending = [digest_of(spec), *seed]
    if list(parts)[-len(ending) :] != ending:
        raise InputError(
            f"--output {output}: it must end in {'/'.join(ending)}, the digest of --spec"
        )
    return spec


def _read_inputs(options: argparse.Namespace, spec: dict[str, Any]) -> dict[str, Path]:
    """Return the input folders by role, each one that the spec was planned with."""
    if options.stage.is_page:
        return {folder: Path(folder) for folder in shown_folders(spec)}
    inputs = {}
    for item in options.input:
        role, separator, folder = item.partition("=")
        if not separator:
            raise InputError(f"--input {item}: write ROLE=FOLDER")
        inputs[role] = Path(folder)
        if not (inputs[role] / MANIFEST).is_file():
            raise InputError(f"--input {item}: there is no finished artifact in {folder}")
    planned = spec.get("inputs", {})
    if inputs.keys() != planned.keys():
        raise InputError(f"--input: the roles must be {', '.join(planned) or 'none'}")
    for role, digest in planned.items():
        if digest not in inputs[role].parts[-2:]:
            raise InputError(f"--input {role}={inputs[role]}: must be the artifact {digest}")
    return inputs


def shown_folders(spec: dict[str, Any]) -> list[str]:
    """Return the folders of the artifacts that a page shows."""
    if spec["kind"] == "overview":
        return list(spec["reports"])
    rows = [*spec["datasets"].values(), *spec["stage1"], *spec["features"], *spec["results"]]
    return list(dict.fromkeys(row["folder"] for row in rows))


@contextmanager
def _folder(output: Path) -> Iterator[None]:
    """Make the artifact's folder, unfinished from here on; leave none behind that stayed empty.

    Raises:
        InputError: another job is at work there.
    """
    from ltpipe.utils.io import is_temporary
    from ltpipe.utils.lock import held_by_job

    made = [folder for folder in (output, *output.parents) if not folder.exists()]
    output.mkdir(parents=True, exist_ok=True)
    try:
        if _torchrun_rank() not in (None, 0):
            yield
            return
        with held_by_job(output) as lock:
            (output / MANIFEST).unlink(missing_ok=True)
            for path in [path for path in output.rglob(".*") if is_temporary(path)]:
                # What a job that was killed left half-written.
                if path != lock:
                    path.unlink(missing_ok=True)
            yield
    except BaseException:
        for folder in made:
            if any(folder.iterdir()):
                break
            folder.rmdir()
        raise


def _compute(
    options: argparse.Namespace, spec: dict[str, Any], inputs: dict[str, Path], output: Path
) -> dict[str, Any]:
    """Run a job and return what the manifest says of the run."""
    import torch

    from ltpipe.artifacts.job import Job
    from ltpipe.artifacts.reading import open_artifact
    from ltpipe.plan.contents import planned_files
    from ltpipe.plan.entries import job_module
    from ltpipe.plan.specs import with_locations
    from ltpipe.training.devices import CPU, describe, lease, numerics, undetermined
    from ltpipe.training.distributed import is_launched, joined
    from ltpipe.utils.memory import keep_freed_memory
    from ltpipe.utils.outside import holding
    from ltpipe.utils.paths import named_root

    if is_launched() and spec["kind"] != "stage1":
        raise InputError("only `ltpipe train` runs as several processes")
    torch.set_num_threads(max(1, options.threads))
    keep_freed_memory()
    module = importlib.import_module(job_module(spec))
    packed = spec.get("locations", {}).get("packed")
    job = Job(
        spec=with_locations(spec),
        inputs=inputs,
        output=output,
        device=CPU,
        root=named_root(options.data_root),
        checkpoint_every=getattr(options, "checkpoint_every", 5),
        packed=None if packed is None else Path(packed),
    )
    # What only moves data leaves GPUs to others.
    wanted = options.device if options.stage.gpu else "cpu"
    drawn = open_artifact(inputs["data"]).spec if "data" in inputs else None
    expected = planned_files(job.spec, drawn, job.root)
    with (
        lease(wanted, options.gpu_slots) as device,
        joined(device),
        holding(expected),
        undetermined() as without_order,
    ):
        run_info = module.run(dataclasses.replace(job, device=device))
        how = numerics(device, without_order)
        return {"device": describe(device), **how, **(run_info or {})}


def _publish(options: argparse.Namespace) -> int:
    from ltpipe.artifacts.publish import publish

    print(publish(options.folder))
    return 0


def _page(stage: Stage, spec: dict[str, Any], output: Path) -> dict[str, Any]:
    from ltpipe.utils.io import write_text_atomic

    if stage.kind == "overview":
        from ltpipe.evaluation.overview import write_overview

        summary = write_overview(spec, output)
    else:
        from ltpipe.evaluation.report import write_report

        expected = Path(spec.get("locations", {}).get("expected", "data/expected"))
        summary = write_report(spec, output, expected)
    write_text_atomic(output / "summary.txt", summary + "\n")
    print(summary)
    print(f"\nreport: {output / 'report.html'}")
    return {}
