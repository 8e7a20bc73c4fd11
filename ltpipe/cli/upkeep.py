"""Care for a results folder: why, verify, gc."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ltpipe.cli.arguments import add_catalogue


def add(commands: Any) -> None:
    """Add these commands to the parser."""
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
    add_catalogue(command)
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
    add_catalogue(command)
    command.add_argument("--delete", action="store_true", help="remove what is listed")
    command.set_defaults(run=_gc)


def _why(options: argparse.Namespace) -> int:
    from ltpipe.artifacts.why import explain_artifact

    for line in explain_artifact(options.path, options.experiments, options.catalogue):
        print(line)
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
