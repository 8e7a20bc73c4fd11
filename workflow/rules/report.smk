rule experiment:
    input:
        lambda wildcards: settle(plan_of(wildcards).report),
    output:
        report=report(
            "results/experiments/{experiment}/report.html",
            caption="../report/page.rst",
            category="{experiment}",
            labels={"what": "the whole experiment"},
        ),
        index=report(
            "results/experiments/{experiment}/index.csv",
            caption="../report/index.rst",
            category="{experiment}",
            labels={"what": "artifacts"},
        ),
        summary="results/experiments/{experiment}/summary.txt",
        tables=report(
            directory("results/experiments/{experiment}/tables"),
            patterns=["{name}.csv"],
            caption="../report/table.rst",
            category="{experiment}",
            subcategory="Tables",
            labels={"what": "{name}"},
        ),
        figures=report(
            directory("results/experiments/{experiment}/figures"),
            patterns=["{name}.svg"],
            caption="../report/figure.rst",
            category="{experiment}",
            subcategory="Figures",
            labels={"what": "{name}"},
        ),
        manifest="results/experiments/{experiment}/manifest.json",
    log:
        "results/logs/experiments/{experiment}.log",
    benchmark:
        "results/benchmarks/experiments/{experiment}.tsv"
    wildcard_constraints:
        experiment=any_of(EXPERIMENTS),
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=4000,
        runtime=60,
    params:
        spec=lambda wildcards: plan_of(wildcards).report.spec_text,
        code=lambda wildcards: identity_of(code_entries({"kind": "report"})),
        folder=subpath(output.manifest, parent=True),
        expected=lambda wildcards, input: str(HERE / "data" / "expected"),
    message:
        "Write the tables, figures and report of {wildcards.experiment}"
    shell:
        "printf %s {params.spec:q} | ltpipe report --spec - --code {params.code}"
        " --output {params.folder:q} --expected {params.expected:q} > {log:q} 2>&1"


OVERVIEW = WORKLOAD.overview

if OVERVIEW is None:
    FINISHED = expand(rules.experiment.output, experiment=EXPERIMENTS)
else:

    rule overview:
        input:
            lambda wildcards: settle(OVERVIEW),
        output:
            report=report(
                f"{OVERVIEW.folder}/report.html",
                caption="../report/overview.rst",
                category="overview",
                labels={"what": "all experiments"},
            ),
            results=report(
                f"{OVERVIEW.folder}/results.csv",
                caption="../report/overview.rst",
                category="overview",
                labels={"what": "all results"},
            ),
            summary=f"{OVERVIEW.folder}/summary.txt",
            manifest=f"{OVERVIEW.folder}/manifest.json",
        log:
            f"results/logs/experiments/{WORKLOAD.head.experiment}.log",
        benchmark:
            f"results/benchmarks/experiments/{WORKLOAD.head.experiment}.tsv"
        conda:
            "../../environment.yml"
        threads: 1
        resources:
            mem_mb=4000,
            runtime=60,
        params:
            spec=OVERVIEW.spec_text,
            code=code_identity(code_entries(OVERVIEW.spec)),
            folder=subpath(output.manifest, parent=True),
        message:
            OVERVIEW.title
        shell:
            "printf %s {params.spec:q} | ltpipe overview --spec - --code {params.code}"
            " --output {params.folder:q} > {log:q} 2>&1"

    FINISHED = expand(rules.experiment.output, experiment=EXPERIMENTS) + list(
        rules.overview.output
    )


rule report:
    input:
        [name for name in FINISHED if name.endswith("report.html")],
