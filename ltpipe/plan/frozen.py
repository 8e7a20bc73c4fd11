"""The plan of a run, frozen: jobs that read the Snakefile again find the same one.

A cluster's jobs may start when data have changed, or where data can't be seen. The main process
writes what it planned below results/ and names the file in the environment.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ltpipe.plan.batches import batches
from ltpipe.plan.layout import ArtifactSpec
from ltpipe.plan.stages import RESULTS
from ltpipe.plan.workload import Workload
from ltpipe.utils.errors import InputError
from ltpipe.utils.io import write_text_atomic

VARIABLE = "LTPIPE_PLAN"
FOLDER = Path(RESULTS, "plans")
_KEPT = 20


@dataclass(frozen=True)
class Run:
    """What rules need of a workload.

    Attributes:
        artifacts: every artifact by folder, pages among them.
        reports: the folder of each experiment's report by its name; the overview's under its own.
        settings: data root, device and preload, as the experiment file has them.
        batches: the folders of results that one job makes together, see `plan.batches`.
    """

    artifacts: Mapping[str, ArtifactSpec]
    reports: Mapping[str, str]
    settings: Mapping[str, Any]
    batches: Sequence[Sequence[str]] = ()

    def of_kind(self, *kinds: str) -> list[ArtifactSpec]:
        """Return the artifacts of these kinds."""
        return [artifact for artifact in self.artifacts.values() if artifact.kind in kinds]

    @cached_property
    def text(self) -> str:
        """The plan as JSON."""
        return json.dumps(
            {
                "format": "ltpipe-plan/1",
                "settings": self.settings,
                "reports": self.reports,
                "batches": self.batches,
                "artifacts": [
                    {
                        "kind": artifact.kind,
                        "folder": artifact.folder,
                        "title": artifact.title,
                        "spec": artifact.spec,
                        "inputs": {r: needed.folder for r, needed in artifact.inputs.items()},
                    }
                    for artifact in self.artifacts.values()
                ],
            }
        )


def run_of(load: Workload, is_there: Callable[[ArtifactSpec], bool]) -> Run:
    """Return what rules need of a workload; `is_there` says which artifacts are."""
    pages = [plan.report for plan in load.plans]
    pages += [] if load.overview is None else [load.overview]
    parts = batches(load.everything.values(), load.head.results_per_job, is_there)
    return Run(
        load.everything,
        {page.spec["experiment"]: page.folder for page in pages},
        {
            "data_root": load.head.data.root,
            "device": load.head.device,
            "preload": load.head.preload,
        },
        [[artifact.folder for artifact in part] for part in parts],
    )


def plan_file(run: Run, base: Path = Path()) -> Path:
    """Return the file below results/ that holds the plan of `run`, named by its contents."""
    return base / FOLDER / f"{hashlib.sha256(run.text.encode()).hexdigest()[:10]}.json"


def freeze(run: Run, base: Path = Path()) -> Path:
    """Write the plan of a run below results/ and return the file."""
    path = plan_file(run, base)
    if path.is_file():
        path.touch()
    else:
        write_text_atomic(path, run.text)
        _forget_old(path.parent)
    return path


def _forget_old(folder: Path) -> None:
    plans = sorted(folder.glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
    for path in plans[:-_KEPT]:
        path.unlink(missing_ok=True)


def frozen() -> Run | None:
    """Return the plan that the environment names; None where this is the main process.

    Raises:
        InputError: the file is not there or no plan.
    """
    name = os.environ.get(VARIABLE)
    if not name:
        return None
    try:
        values = json.loads(Path(name).read_text(encoding="utf-8"))
        artifacts: dict[str, ArtifactSpec] = {}
        for row in values["artifacts"]:
            artifacts[row["folder"]] = ArtifactSpec(
                row["kind"], row["folder"], row["title"], row["spec"]
            )
        for row in values["artifacts"]:
            inputs = {role: artifacts[folder] for role, folder in row["inputs"].items()}
            artifacts[row["folder"]].inputs.update(inputs)
        return Run(artifacts, values["reports"], values["settings"], values["batches"])
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(
            f"{VARIABLE} names {name}, which is no plan of a run; unset it, or run again"
        ) from None
