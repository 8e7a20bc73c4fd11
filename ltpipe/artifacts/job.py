"""What a job gets: the spec of the artifact to make, its inputs, and where it runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ltpipe.artifacts.reading import checked_file
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
        packed: the artifact of the data set's packed images, or None where they are no files.
    """

    spec: Mapping[str, Any]
    inputs: Mapping[str, Path]
    output: Path
    device: torch.device
    root: Path | None = None
    checkpoint_every: int = 5
    packed: Path | None = None

    def file(self, role: str, name: str) -> Path:
        """Return a file of the artifact that plays a role, held against its manifest.

        Raises:
            InputError: the file is missing or damaged.
        """
        return checked_file(self.inputs[role], name)

    def packed_images(self) -> Path | None:
        """Return the file of the packed images, held against its manifest; None without one.

        Raises:
            InputError: it is missing or damaged.
        """
        return None if self.packed is None else checked_file(self.packed, "images.h5")

    def tuning(self, role: str) -> str:
        """Return the input role with the held-out samples that go with the features of `role`."""
        own = f"tuning.{role}"
        return own if own in self.inputs else f"features.{role}"

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
