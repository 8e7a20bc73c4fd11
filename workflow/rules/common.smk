# The plan of the experiment, and what rules ask of it. Nothing here imports torch: this file is
# read again at the start of every cluster job.
import re
import sys
from functools import cache
from pathlib import Path

from ltpipe.config.collection import build_workload
from ltpipe.config.missing import describe_missing
from ltpipe.config.plan import code_entries
from ltpipe.environment import gpu_count, outside_file, prepare_jobs, start_server
from ltpipe.errors import InputError
from ltpipe.presence import judge
from ltpipe.provenance import code_identity

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

prepare_jobs(WORKLOAD.head.data.root, WORKLOAD.head.device)

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


def needs(stage):
    """An input function: the manifests of what the artifact is made from, and outside files.

    Manifests are small enough for Snakemake to compare by content, so touching a large file
    reruns nothing.
    """

    def inputs(wildcards):
        cell = cell_of(stage, wildcards)
        return [f"{needed.folder}/manifest.json" for needed in cell.inputs.values()] + [
            outside_file(name) for name in cell.files
        ]

    return inputs


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
