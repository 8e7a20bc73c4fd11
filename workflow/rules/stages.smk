# One rule for each stage, all of one form: the manifests of what an artifact is made from, its files,
# and one `ltpipe` line, which a person can run again by hand.


def needs(stage):
    """An input function: the manifests of what an artifact is made from.

    The digest in a path says all that defines it, so times of files say nothing.
    """
    artifact = artifact_of(stage)

    def files(wildcards):
        inputs = artifact(wildcards).inputs.values()
        return ancient([f"{needed.folder}/{MANIFEST}" for needed in inputs])

    return files


def roles(stage):
    """A params function: the --input options for what the artifact is made from."""
    artifact = artifact_of(stage)
    return lambda wildcards: [
        f"--input={role}={needed.folder}"
        for role, needed in artifact(wildcards).inputs.items()
    ]


def told(stage, attribute):
    """A params function: what the plan says of the artifact."""
    artifact = artifact_of(stage)
    return lambda wildcards: getattr(artifact(wildcards), attribute)


def options(stage):
    """A params function: what the stage's command is told beside that; GPUs are processes."""
    if stage.kind != "stage1":
        return []
    return lambda wildcards, resources: [f"--processes={resources.gpu}"]


for stage in STAGES.values():
    if stage.is_page:
        continue

    rule:
        name:
            stage.rule
        input:
            needs(stage),
        output:
            [
                f"results/{stage.folder}/{{place}}/{name}"
                for name in (*stage.files, MANIFEST)
            ],
        log:
            f"results/logs/{stage.folder}/{{place}}.log",
        benchmark:
            f"results/benchmarks/{stage.folder}/{{place}}.tsv"
        wildcard_constraints:
            place=place(stage),
        conda:
            "../../environment.yml"
        threads: 1
        resources:
            mem_mb=stage.memory,
            runtime=stage.minutes,
            gpu=RUN.gpu_per_job if stage.gpu else 0,
        params:
            command=stage.command,
            spec=told(stage, "spec_text"),
            roles=roles(stage),
            title=told(stage, "title"),
            options=options(stage),
            folder=f"results/{stage.folder}/{{place}}",
        message:
            "{params.title}"
        shell:
            "ltpipe {params.command} --spec {params.spec:q} {params.roles:q} {params.options}"
            " --output {params.folder:q} --threads {threads} > {log:q} 2>&1"


rule stage1:
    input:
        ancient(manifests("data", "stage1")),


rule features:
    input:
        ancient(manifests("data", "features", "import")),


rule stage2:
    input:
        ancient(manifests("data", "stage2")),
