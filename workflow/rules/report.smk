EXPERIMENT = PLAN.experiment.file.experiment


rule experiment:
    input:
        lambda wildcards: settle(PLAN.report),
    output:
        report=report(
            f"results/experiments/{EXPERIMENT}/report.html",
            caption="../report/page.rst",
            category=EXPERIMENT,
            labels={"what": "the whole experiment"},
        ),
        index=report(
            f"results/experiments/{EXPERIMENT}/index.csv",
            caption="../report/index.rst",
            category=EXPERIMENT,
            labels={"what": "artifacts"},
        ),
        summary=f"results/experiments/{EXPERIMENT}/summary.txt",
        tables=report(
            directory(f"results/experiments/{EXPERIMENT}/tables"),
            patterns=["{name}.csv"],
            caption="../report/table.rst",
            category=EXPERIMENT,
            subcategory="Tables",
            labels={"what": "{name}"},
        ),
        figures=report(
            directory(f"results/experiments/{EXPERIMENT}/figures"),
            patterns=["{name}.svg"],
            caption="../report/figure.rst",
            category=EXPERIMENT,
            subcategory="Figures",
            labels={"what": "{name}"},
        ),
        manifest=f"results/experiments/{EXPERIMENT}/manifest.json",
    log:
        f"results/logs/experiments/{EXPERIMENT}.log",
    benchmark:
        f"results/benchmarks/experiments/{EXPERIMENT}.tsv"
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=4000,
        runtime=60,
    params:
        spec=PLAN.report.spec_text,
        code=code_identity(code_entries(PLAN.report.spec)),
        folder=subpath(output.manifest, parent=True),
        expected=lambda wildcards, input: str(HERE / "data" / "expected"),
    message:
        f"Write the tables, figures and report of {EXPERIMENT}"
    shell:
        "printf %s {params.spec:q} | ltpipe report --spec - --code {params.code}"
        " --output {params.folder:q} --expected {params.expected:q} > {log:q} 2>&1"


rule report:
    input:
        rules.experiment.output.report,
