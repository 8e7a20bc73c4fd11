# One rule for each stage, all of one form: the files of what an artifact is made from, its own,
# and one `ltpipe` line, which a person can run again by hand.

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
        threads: told(stage, "threads")
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


# Short results on the same features, one job for many of them: they share its process and what it
# reads. Log and benchmark are the first one's.
for number, batch in enumerate(RUN.batches):
    stage, first = STAGES["stage2"], batch[0].folder.removeprefix("results/")

    rule:
        name:
            f"{stage.rule}_{number}"
        input:
            needs_of(batch),
        output:
            [path for artifact in batch for path in artifact_paths(artifact)],
        log:
            f"results/logs/{first}.log",
        benchmark:
            f"results/benchmarks/{first}.tsv"
        conda:
            "../../environment.yml"
        threads: stage.threads
        resources:
            mem_mb=stage.memory,
            runtime=stage.minutes,
            gpu=RUN.gpu_per_job if stage.gpu else 0,
        params:
            command=stage.command,
            jobs=jobs_of(batch),
            roles=roles_of(batch[0]),
            options=options(stage),
        message:
            f"{batch[0].title}, and {len(batch) - 1} more on its features"
        shell:
            "ltpipe {params.command} {params.jobs:q} {params.roles:q} {params.options}"
            " --threads {threads} > {log:q} 2>&1"


rule stage1:
    input:
        files(RUN.of_kind("data", "stage1")),


rule features:
    input:
        files(RUN.of_kind("data", "features", "import")),


rule stage2:
    input:
        files(RUN.of_kind("data", "stage2")),
