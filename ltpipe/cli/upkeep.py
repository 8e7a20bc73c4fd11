"""Care for a results folder: why, adopt, verify, gc."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ltpipe.cli.arguments import add_catalogue, add_experiment
from ltpipe.plan.stages import RESULTS, STAGES


def add(commands: Any) -> None:
    """Add these commands to the parser."""
    command = commands.add_parser(
        "why",
        help="what an artifact was made from, or why one will be made",
        description="Of an artifact that is there, say what it was made from and what experiments "
        "ask for instead; of one that is not there, what its nearest relative differs in: "
        "settings, modules, files from outside, inputs. Of an experiment file alone, say what is "
        "missing and why.",
    )
    command.add_argument(
        "path", type=Path, help="an artifact's folder, a file in it, or an experiment file"
    )
    command.add_argument(
        "experiments", type=Path, nargs="*", help="experiment files, for what they ask for"
    )
    add_catalogue(command)
    command.set_defaults(run=_why)

    command = commands.add_parser(
        "adopt",
        help="take over what older code made, on your word that it computes the same",
        description="Take over artifacts, interrupted trainings among them, that differ from what "
        "is planned in code alone, in themselves and in all that they were made from. Files are "
        "linked, nothing is computed, the older artifacts stay; manifests say what was adopted.",
    )
    add_experiment(command)
    command.add_argument(
        "--stage",
        nargs="+",
        choices=[kind for kind, stage in STAGES.items() if not stage.is_page],
        help="these kinds of artifacts alone, and what they are made from",
    )
    command.add_argument("--dry-run", action="store_true", help="say what would be adopted")
    command.set_defaults(run=_adopt)

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
    add_catalogue(command)
    command.add_argument(
        "--superseded",
        action="store_true",
        help="list trainings too that others of the same names and seed have superseded",
    )
    command.add_argument("--delete", action="store_true", help="remove what is listed")
    command.set_defaults(run=_gc)


def _why(options: argparse.Namespace) -> int:
    from ltpipe.artifacts.why import explain

    for line in explain(options.path, options.experiments, options.catalogue):
        print(line)
    return 0


def _adopt(options: argparse.Namespace) -> int:
    from ltpipe.artifacts.adopt import KINDS, adopt, duration
    from ltpipe.plan.availability import judge
    from ltpipe.plan.workload import load_workload

    load = load_workload(options.experiment, options.catalogue, judge)
    kinds = options.stage or KINDS
    adopted, hours, left = 0, 0.0, 0
    for step in adopt(load.artifacts, Path(RESULTS), kinds, options.dry_run):
        if step.source is None:
            left += 1
            print(f"left     {step.planned.folder}")
        else:
            adopted += 1
            hours += step.hours
            print(f"adopted  {step.planned.folder} ({duration(step.hours)})")
            print(f"         from {step.source.name}")
        for line in step.notes:
            print(f"         {line}")
    verb = "would be adopted" if options.dry_run else "adopted"
    print(f"{adopted} artifacts {verb} ({duration(hours)} to make), {left} left")
    return 0


def _verify(options: argparse.Namespace) -> int:
    from ltpipe.artifacts.verify import verify

    found = verify(options.path)
    for line in found.notes:
        print(f"note: {line}")
    for line in found.wrong:
        print(f"wrong: {line}")
    checked = f"{found.artifacts} artifacts, {found.files} files, {found.size / 1e6:.1f} MB"
    print(f"checked {checked}: {f'{len(found.wrong)} wrong' if found.wrong else 'all as recorded'}")
    return 1 if found.wrong else 0


def _gc(options: argparse.Namespace) -> int:
    from ltpipe.artifacts.gc import find_waste, remove

    found = find_waste(options.experiments, options.results, options.catalogue, options.superseded)
    waste = found.waste
    for item in waste:
        print(f"{item.size / 1e6:10.1f} MB  {item.what:<12}  {item.path}")
    if found.superseded:
        print(
            f"kept: {len(found.superseded)} superseded trainings and what they are made from; "
            "--superseded lists them too"
        )
    total = f"{len(waste)} items, {sum(item.size for item in waste) / 1e6:.1f} MB"
    if options.delete:
        remove(waste, options.results)
        print(f"removed {total}")
    else:
        print(f"{total}; --delete removes them" if waste else "nothing to remove")
    return 0
