# The plan of the experiment, and what rules ask of it. Nothing here imports torch: this file is
# read again at the start of every cluster job.
import re
import sys
from functools import cache
from pathlib import Path

from snakemake.settings.types import RerunTrigger

from ltpipe.plan.workload import build_workload
from ltpipe.plan.missing import describe_missing
from ltpipe.plan.layout import code_entries
from ltpipe.runtime.environment import gpu_count, outside_file, prepare_jobs, start_server
from ltpipe.utils.errors import InputError
from ltpipe.plan.availability import judge
from ltpipe.artifacts.manifest import code_identity
from ltpipe.artifacts.changes import Artifacts

HERE = Path(workflow.basedir)

# Files that the experiment file includes are looked for beside it.
BESIDE = [Path(name).parent for name in workflow.overwrite_configfiles][-1:]

try:
    WORKLOAD = build_workload(
        config, HERE / "config", BESIDE[0] if BESIDE else HERE / "config", absent=judge
    )
except InputError as error:
    raise WorkflowError(f"experiment file: {error}") from None

if WORKLOAD.missing and workflow.is_main_process:
    print(describe_missing(WORKLOAD.missing, WORKLOAD.left_out), file=sys.stderr)

EXPERIMENTS = WORKLOAD.reports

# One answer for the whole run: a job that starts after its code changed refuses to run.
identity_of = cache(code_identity)

HEAD = WORKLOAD.head
prepare_jobs(HEAD.data.root, HEAD.device)

# Jobs ask for a GPU where this machine has one; on clusters the profile asks for it. Snakemake
# takes an unstated resource as unlimited, so the number of GPUs here is the default limit.
GPUS = gpu_count()
workflow.global_resources.setdefault("gpu", max(GPUS, 1))
GPU_PER_JOB = min(GPUS, 1)


def folders(*kinds):
    """Every artifact folder of these kinds."""
    return [cell.folder for cell in WORKLOAD.of_kind(*kinds)]


def manifests(*kinds):
    """Every manifest of these kinds: small files that stand for their folders."""
    return [f"{folder}/manifest.json" for folder in folders(*kinds)]


def digests(*kinds):
    """A wildcard constraint: the digests of these kinds, or what nothing matches."""
    return any_of(sorted({cell.digest for cell in WORKLOAD.of_kind(*kinds)}))


def any_of(names):
    """A wildcard constraint: one of the names, or what nothing matches."""
    return "|".join(map(re.escape, names)) or "(?!)"


def cell_of(stage, wildcards):
    parts = ["results", stage, wildcards.dataset]
    parts += [
        wildcards[key] for key in ("backbone", "method") if key in wildcards.keys()
    ]
    parts.append(wildcards.digest)
    if "seed" in wildcards.keys():
        parts.append(f"seed{wildcards.seed}")
    return WORKLOAD.cells["/".join(parts)]


def plan_of(wildcards):
    """The plan of the experiment that a report is about."""
    return EXPERIMENTS[wildcards.experiment]


def spec_of(stage):
    """A params function: the canonical text of everything that defines the artifact."""
    return lambda wildcards: cell_of(stage, wildcards).spec_text


def code_of(stage):
    """A params function: the identity of the code that makes the artifact."""
    return lambda wildcards: identity_of(code_entries(cell_of(stage, wildcards).spec))


# Targets that ask for no backbone. There, features need not have theirs beside them.
CACHE_TARGETS = {"features", "stage2"}


@cache
def artifacts():
    """What lies there already, judged by its contents."""
    # Manifests list inputs too, and one that is not needed may be gone.
    triggers = frozenset(workflow.dag_settings.rerun_triggers)
    workflow.dag_settings.rerun_triggers = triggers - {RerunTrigger.INPUT}
    asked = {rule.name for rule in workflow.dag.targetrules}
    return Artifacts(
        identity=identity_of,
        without_inputs=asked <= CACHE_TARGETS and bool(asked),
    )


RULES = {
    "data": "draw",
    "stage1": "train",
    "features": "embed",
    "import": "take_over",
    "filter": "filter",
    "stage2": "classify",
    "report": "experiment",
}


@cache
def is_asked_for(cell):
    """Whether --forcerun and its kin have an artifact made again, or what it is made from."""
    folder = f"{cell.folder}/"
    return (
        any(rule.name == RULES[cell.kind] for rule in workflow.dag.forcerules)
        or any(file.startswith(folder) for file in workflow.dag.forcefiles)
        or any(is_asked_for(needed) for needed in cell.inputs.values())
    )


def settle(cell):
    """Return what `cell` is made from, manifests and outside files, as its job's input.

    Manifests say what artifacts were made from, so an artifact is taken or made again by what it
    holds, wherever it was copied from and whatever its times or Snakemake's records say. One that
    was made from other things is forced. One that is as the plan asks does not look at the times
    of its inputs. Nor do Snakemake's marks of unfinished files count: a manifest is written last
    and deleted first.
    """
    workflow.dag.ignore_incomplete = True
    inputs = cell.inputs.values()
    made = [f"{needed.folder}/manifest.json" for needed in inputs]
    files = made + [outside_file(name) for name in cell.files]
    found = artifacts()
    if found.is_current(cell):
        there = [file for file in files if Path(file).exists()]
        if found.is_newer_than(cell, there) or any(map(is_asked_for, inputs)):
            return there
        return ancient(there)
    if workflow.is_main_process and found.is_there(cell) and found.has_changed(cell):
        workflow.dag.forcefiles.add(f"{cell.folder}/manifest.json")
    return files


def needs(stage):
    """An input function: the manifests of what the artifact is made from, and outside files."""
    return lambda wildcards: settle(cell_of(stage, wildcards))


def roles_of(stage):
    """A resources-free params function: the --input options for the artifact's inputs."""

    def options(wildcards, input):
        cell = cell_of(stage, wildcards)
        return [
            f"--input={role}={needed.folder}" for role, needed in cell.inputs.items()
        ]

    return options


def title_of(stage):
    """A params function that does not count for reruns: the job in words."""
    return lambda wildcards, input: cell_of(stage, wildcards).title
