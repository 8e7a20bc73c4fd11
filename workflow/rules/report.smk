EXPERIMENT = PLAN.experiment.file.experiment


rule experiment:
    input:
        lambda wildcards: settle(PLAN.report),
    output:
        report=f"results/experiments/{EXPERIMENT}/report.html",
        index=f"results/experiments/{EXPERIMENT}/index.csv",
        summary=f"results/experiments/{EXPERIMENT}/summary.txt",
        tables=directory(f"results/experiments/{EXPERIMENT}/tables"),
        figures=directory(f"results/experiments/{EXPERIMENT}/figures"),
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
