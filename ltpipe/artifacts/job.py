"""What a job gets: the spec of the artifact to make, its inputs, and where it runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ltpipe.config.base import canonical_json
from ltpipe.plan.stages import RESUME

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Job:
    """One artifact to make.

    Attributes:
        spec: the settings that define the artifact, defaults left out, files where they lie.
        inputs: the folder that plays each role.
        output: the folder to fill; files in it are whole or absent.
        device: where to compute.
        root: the folder of the data sets, or None.
        checkpoint_every: epochs between checkpoints of a long training.
    """

    spec: Mapping[str, Any]
    inputs: Mapping[str, Path]
    output: Path
    device: torch.device
    root: Path | None = None
    checkpoint_every: int = 5

    @property
    def seed(self) -> int:
        """The seed of all that is drawn; 0 for an artifact that has none."""
        return int(self.spec.get("seed", 0))

    @property
    def resume(self) -> Path:
        """The folder of what an interrupted job goes on from."""
        return self.output / RESUME


def run_identity(spec: Mapping[str, Any], draw: str, processes: int) -> str:
    """Return the text that says to which run a checkpoint belongs.

    Args:
        spec: the job's.
        draw: the digest of the samples that are trained on.
        processes: how many train together.
    """
    together = {"processes": processes} if processes > 1 else {}
    return canonical_json({"spec": spec, "draw": draw, **together})
