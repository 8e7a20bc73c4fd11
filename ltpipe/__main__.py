"""The program `ltpipe`, also `python -m ltpipe`: asks the server first, which imports little."""

from __future__ import annotations

import sys

from ltpipe.server import hand_over


def main() -> int:
    """Run the command of this process; a server may do it in its place."""
    arguments = sys.argv[1:]
    status = hand_over(arguments)
    if status is None:
        from ltpipe import cli

        status = cli.main(arguments)
    return status


if __name__ == "__main__":
    sys.exit(main())
