"""The command line: what the workflow's rules call, and what people ask."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from ltpipe import __version__
from ltpipe.cli import experiments, jobs, own_data, upkeep
from ltpipe.utils.errors import DiskError, InputError
from ltpipe.utils.io import printable, refusal

_DESCRIPTION = """\
Long-tailed image classification in two stages: train backbones once, cache their features, then
train and compare classifiers on the cache in seconds.

Own photos: `ltpipe init PHOTOS --output photos.yaml`, `ltpipe run photos.yaml`, then export,
predict and mistakes. `ltpipe COMMAND --help` says more of each.
"""


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
        reason, place = refusal(error), getattr(error, "filename", None)
        if reason is not None:
            print(f"ltpipe: error: {place or 'a file'}: {reason}", file=sys.stderr)
            return os.EX_IOERR
        if not isinstance(error, OSError) or not isinstance(place, str | Path):
            raise
        # A path that is no file, a folder, or too long.
        text = f"{printable(place)[:200]}: {error.strerror}"
        print(f"ltpipe: error: {text}; name another", file=sys.stderr)
        return 2


def _one_line(error: InputError) -> str:
    return " ".join(str(error).split("\n"))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ltpipe",
        description=_DESCRIPTION,
        epilog=jobs.overview(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"ltpipe {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for family in (own_data, experiments, upkeep, jobs):
        family.add(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
