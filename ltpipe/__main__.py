"""The program `ltpipe`, also `python -m ltpipe`: asks the server first, which imports little."""

from __future__ import annotations

import os
import sys
from typing import Any

from ltpipe.runtime.client import hand_over
from ltpipe.runtime.parents import end_with_run


def main() -> int:
    """Run the command of this process; a server may do it in its place."""
    arguments = sys.argv[1:]
    # Jobs are the commands that are told a spec.
    if "--spec" in arguments:
        end_with_run()
    status = hand_over(arguments)
    if status is None:
        from ltpipe.cli import program

        _say_refusals_once()
        status = program.main(arguments)
        if status == os.EX_IOERR:
            # HDF5 would try to write once more what it could not write, and crash.
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            os._exit(status)
    return status


def _say_refusals_once() -> None:
    """Leave out what HDF5 says again and again of a full disk when its objects are freed."""
    exception, unraisable = sys.excepthook, sys.unraisablehook

    def was_refused(error: Any) -> bool:
        from ltpipe.utils.io import refusal

        return refusal(error) is not None

    def show(kind: Any, error: Any, trace: Any) -> None:
        if not was_refused(error):
            exception(kind, error, trace)

    def show_unraisable(found: Any) -> None:
        if not was_refused(found.exc_value):
            unraisable(found)

    sys.excepthook, sys.unraisablehook = show, show_unraisable


if __name__ == "__main__":
    sys.exit(main())
