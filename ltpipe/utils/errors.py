"""The one error that users are meant to read, and help with misspelt names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Bad input from outside: a file, a setting or a command line.

    The message is one line that names the file or key and says what to do about it. The command
    line prints it without a traceback and exits with status 2.
    """


class DiskError(InputError):
    """The system refused to read or write: a full disk, missing rights. Status 74."""


def nearest(name: str, choices: Iterable[str]) -> str:
    """Return `` (did you mean 'x'?)`` for the choice closest to `name`, or an empty string."""
    # What is no misspelt name is not compared, which takes long.
    if len(name) > 200:
        return ""
    match = difflib.get_close_matches(name, list(choices), n=1, cutoff=0.5)
    return f" (did you mean {match[0]!r}?)" if match else ""
