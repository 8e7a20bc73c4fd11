"""Arguments that several commands have."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_catalogue(command: argparse.ArgumentParser) -> None:
    """Let a command name the folder of definitions."""
    command.add_argument(
        "--catalogue", type=Path, metavar="DIR", help="the catalogue (default: that of the file)"
    )


def add_experiment(command: argparse.ArgumentParser) -> None:
    """Let a command name an experiment file and its catalogue."""
    command.add_argument("experiment", type=Path, help="the experiment file")
    add_catalogue(command)
