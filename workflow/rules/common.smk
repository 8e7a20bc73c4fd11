# The plan of the run, and what rules ask of it. Nothing here imports torch: this file is read again
# at the start of every cluster job.
from pathlib import Path

from ltpipe.plan.stages import MANIFEST, STAGES
from ltpipe.runtime.run import plan_run
from ltpipe.utils.errors import InputError

try:
    # Files that the experiment file includes are looked for beside it.
    RUN = plan_run(config, Path(workflow.basedir), workflow.overwrite_configfiles)
except InputError as error:
    raise WorkflowError(f"experiment file: {error}") from None

# Jobs ask for a GPU where this machine has one; on clusters the profile asks for it. Snakemake
# takes an unstated resource as unlimited, so the number of GPUs here is the default limit.
if "gpu" not in workflow.global_resources:
    workflow.global_resources["gpu"] = max(RUN.gpus, 1)


def begin_run():
    try:
        RUN.begin()
    except InputError as error:
        raise WorkflowError(str(error)) from None


def manifests(*kinds):
    """Every manifest of these kinds: small files that stand for their folders."""
    return [f"{artifact.folder}/{MANIFEST}" for artifact in RUN.of_kind(*kinds)]


def place(stage):
    """The wildcard constraint of a stage's folders: its names, one of the planned digests, a seed."""
    digests = sorted({artifact.digest for artifact in RUN.of_kind(stage.kind)})
    return rf"(?:[^/]+/){{{stage.names}}}(?:{'|'.join(digests) or '(?!)'})(?:/seed\d+)?"


def artifact_of(stage):
    """An input function: the planned artifact of a stage that the wildcards name."""
    return lambda wildcards: RUN.artifacts[f"results/{stage.folder}/{wildcards.place}"]
