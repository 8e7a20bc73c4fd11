# The plan of the run, and what rules ask of it. Nothing here imports torch: this file is read again
# at the start of every cluster job.
#
# Three things of Snakemake's that its documentation does not name, held by tests/workflow:
# `workflow.overwrite_configfiles`, the files after --configfile (in the Snakefile, too),
# `workflow.global_resources`, the limits of resources, and `workflow.current_basedir`, where this
# file lies.
from pathlib import Path

from ltpipe.plan.stages import MANIFEST, STAGES
from ltpipe.runtime.run import artifact_paths, is_there, plan_run
from ltpipe.utils.errors import InputError

# Of this file, wherever the workflow that uses it as a module lies.
HOME = Path(workflow.current_basedir.get_path_or_uri(secret_free=True)).parents[1]

try:
    # Files that the experiment file includes are looked for beside it.
    RUN = plan_run(config, HOME, workflow.overwrite_configfiles)
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


def files(artifacts):
    """All files of these artifacts, so that one that vanished is made again.

    The digest in a path says all that defines it, so times of files say nothing.
    """
    return ancient(
        [path for artifact in artifacts for path in artifact_paths(artifact)]
    )


def place(stage):
    """The wildcard constraint of a stage's folders: its names, one of the planned digests, a seed.

    What a batch makes has a rule of its own.
    """
    elsewhere = {artifact.digest for batch in RUN.batches for artifact in batch}
    digests = {artifact.digest for artifact in RUN.of_kind(stage.kind)} - elsewhere
    digests = sorted(digests)
    return rf"(?:[^/]+/){{{stage.names}}}(?:{'|'.join(digests) or '(?!)'})(?:/seed\d+)?"


def artifact_of(stage):
    """An input function: the planned artifact of a stage that the wildcards name."""
    return lambda wildcards: RUN.artifacts[f"results/{stage.folder}/{wildcards.place}"]


def needs(stage):
    """An input function: the files of what an artifact is made from.

    One that is there needs nothing, so what is gone from its inputs is left out: Snakemake would
    run it again if they were made again for another.
    """
    artifact = artifact_of(stage)

    def needed(wildcards):
        inputs = [*artifact(wildcards).inputs.values(), *packed(artifact(wildcards))]
        if is_there(artifact(wildcards)):
            inputs = filter(is_there, inputs)
        return files(inputs)

    return needed


def needs_of(batch):
    """The files of what a batch is made from: the same for all of it."""
    return files([*batch[0].inputs.values(), *packed(batch[0])])


def packed(artifact):
    """The packed images that an artifact's job reads, if it does; they define nothing."""
    folder = artifact.spec.get("locations", {}).get("packed")
    return [] if folder is None else [RUN.artifacts[folder]]


def roles(stage):
    """A params function: the --input options for what the artifact is made from."""
    artifact = artifact_of(stage)
    return lambda wildcards: roles_of(artifact(wildcards))


def roles_of(artifact):
    return [f"--input={role}={made.folder}" for role, made in artifact.inputs.items()]


def jobs_of(batch):
    """The options for the specs and folders of a batch."""
    return [
        word
        for artifact in batch
        for word in ("--spec", artifact.spec_text, "--output", artifact.folder)
    ]


def told(stage, attribute):
    """A params function: what the plan says of the artifact."""
    artifact = artifact_of(stage)
    return lambda wildcards: getattr(artifact(wildcards), attribute)


def options(stage):
    """A params function: what the stage's command is told of the resources that it was given.

    A training has a process for each GPU. A job without a GPU leaves those that the machine has to
    others, unless the run names its device itself.
    """
    if not stage.gpu:
        return []

    def told_resources(wildcards, resources):
        gpus = resources.get("gpu", 0)
        if not gpus:
            return ["--device=cpu"] if RUN.device == "auto" else []
        several = [f"--processes={gpus}"] if stage.kind == "stage1" else []
        return [*several, f"--gpu-slots={resources.get('gpu_slots', 1)}"]

    return told_resources
