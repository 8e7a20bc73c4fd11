"""One run of the workflow: what the Snakefile plans, prepares and guards. Imports no torch."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ltpipe.artifacts.adopt import dear_trainings
from ltpipe.config.files import read_yaml
from ltpipe.plan.availability import judge
from ltpipe.plan.frozen import VARIABLE, Run, freeze, frozen, plan_file, run_of
from ltpipe.plan.layout import ArtifactSpec
from ltpipe.plan.stages import MANIFEST, RESULTS
from ltpipe.plan.workload import build_workload
from ltpipe.runtime.environment import prepare_jobs
from ltpipe.runtime.server import start_server, sweep
from ltpipe.utils.errors import InputError
from ltpipe.utils.lock import hold
from ltpipe.utils.machine import gpu_count

# The page of the run that this process has planned: the report, or the overview of several.
_page: Path | None = None


@dataclass(frozen=True)
class WorkflowRun:
    """What the rules ask of a run: its plan, and the GPUs of this machine.

    A job asks for `gpu_per_job` GPUs, of which there are `gpus`.
    """

    plan: Run
    gpus: int

    @property
    def artifacts(self) -> Mapping[str, ArtifactSpec]:
        """Every planned artifact by folder, pages among them."""
        return self.plan.artifacts

    @property
    def reports(self) -> Mapping[str, str]:
        """The folder of each experiment's report by its name."""
        return self.plan.reports

    @property
    def device(self) -> str:
        """What jobs compute on: `auto`, or the device that is named for all of them."""
        return os.environ["LTPIPE_DEVICE"]

    @property
    def gpu_per_job(self) -> int:
        """How many GPUs a job of a stage that uses one asks for."""
        return min(self.gpus, 1)

    def of_kind(self, *kinds: str) -> list[ArtifactSpec]:
        """Return the planned artifacts of these kinds."""
        return self.plan.of_kind(*kinds)

    @property
    def batches(self) -> list[list[ArtifactSpec]]:
        """The results that one job makes together."""
        return [[self.artifacts[folder] for folder in part] for part in self.plan.batches]

    def begin(self) -> None:
        """Take the results folder, write the plan down for its jobs, start the job server.

        Raises:
            InputError: another run has the results folder.
        """
        hold(Path(RESULTS))
        sweep()
        freeze(self.plan)
        if self.plan.settings["preload"]:
            start_server()


def plan_run(config: Mapping[str, Any], home: Path, configfiles: Sequence[Any]) -> WorkflowRun:
    """Return the run of an experiment, planned here or, in a cluster's job, by the main process.

    Args:
        config: the contents of the experiment file.
        home: the folder of the Snakefile, with config/ and data/expected/ in it.
        configfiles: the experiment file as it was named on the command line, if it was.

    Raises:
        InputError: the experiment can't be, or lies where Snakemake can't run.
    """
    for folder in (home, Path.cwd()):
        if set("{}") & set(str(folder)):
            raise InputError(
                f"{folder}: Snakemake takes braces in a path for names; rename the folder"
            )
    plan = frozen()
    if plan is None:
        catalogue = home / "config"
        for name in configfiles:
            # Snakemake has read it, and takes the last of equal keys.
            read_yaml(Path(name))
        file = [Path(name) for name in configfiles][-1:] or [catalogue / "config.yaml"]
        plan = _plan(config, catalogue, file[0])
        os.environ[VARIABLE] = str(plan_file(plan).absolute())
    prepare_jobs(plan.settings["data_root"], plan.settings["device"])
    global _page
    _page = [Path(folder) for folder in plan.reports.values()][-1]
    return WorkflowRun(plan, gpu_count())


def finished_page() -> Path | None:
    """Return the folder of the page that this process's run is for, once it is there."""
    return _page if _page is not None and (_page / MANIFEST).is_file() else None


def _plan(config: Mapping[str, Any], catalogue: Path, file: Path) -> Run:
    load = build_workload(config, catalogue, file.parent, absent=judge)
    for line in (*load.notes, *dear_trainings(load.artifacts, Path(RESULTS), file)):
        print(line, file=sys.stderr)
    return run_of(load, is_there)


def artifact_paths(artifact: ArtifactSpec) -> list[str]:
    """Return all files of an artifact, its manifest last."""
    return [f"{artifact.folder}/{name}" for name in (*artifact.stage.files, MANIFEST)]


def is_there(artifact: ArtifactSpec) -> bool:
    """Return whether every file of an artifact is there."""
    return all(os.path.exists(path) for path in artifact_paths(artifact))  # noqa: PTH110
