# Reports lie under digests of their own, and are published under a path for people.

REPORT, OVERVIEW = STAGES["report"], STAGES["overview"]


rule experiment:
    input:
        needs(REPORT),
    output:
        report=report(
            "results/experiments/{place}/report.html",
            caption="../report/page.rst",
            category="{place}",
            labels={"what": "the whole experiment"},
        ),
        index=report(
            "results/experiments/{place}/index.csv",
            caption="../report/index.rst",
            category="{place}",
            labels={"what": "artifacts"},
        ),
        summary="results/experiments/{place}/summary.txt",
        tables=report(
            directory("results/experiments/{place}/tables"),
            patterns=["{name}.csv"],
            caption="../report/table.rst",
            category="{place}",
            subcategory="Tables",
            labels={"what": "{name}"},
        ),
        figures=report(
            directory("results/experiments/{place}/figures"),
            patterns=["{name}.svg"],
            caption="../report/figure.rst",
            category="{place}",
            subcategory="Figures",
            labels={"what": "{name}"},
        ),
        manifest="results/experiments/{place}/manifest.json",
    log:
        "results/logs/experiments/{place}.log",
    benchmark:
        "results/benchmarks/experiments/{place}.tsv"
    wildcard_constraints:
        place=place(REPORT),
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=REPORT.memory,
        runtime=REPORT.minutes,
    params:
        spec=told(REPORT, "spec_text"),
        folder=subpath(output.manifest, parent=True),
        title=told(REPORT, "title"),
    message:
        "{params.title}"
    shell:
        "printf %s {params.spec:q} | ltpipe report --spec -"
        " --output {params.folder:q} > {log:q} 2>&1"


rule overview:
    input:
        needs(OVERVIEW),
    output:
        page=report(
            "results/experiments/{place}/report.html",
            caption="../report/overview.rst",
            category="overview",
            labels={"what": "all experiments"},
        ),
        results=report(
            "results/experiments/{place}/results.csv",
            caption="../report/overview.rst",
            category="overview",
            labels={"what": "all results"},
        ),
        summary="results/experiments/{place}/summary.txt",
        manifest="results/experiments/{place}/manifest.json",
    log:
        "results/logs/experiments/{place}.log",
    benchmark:
        "results/benchmarks/experiments/{place}.tsv"
    wildcard_constraints:
        place=place(OVERVIEW),
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=OVERVIEW.memory,
        runtime=OVERVIEW.minutes,
    params:
        spec=told(OVERVIEW, "spec_text"),
        folder=subpath(output.manifest, parent=True),
        title=told(OVERVIEW, "title"),
    message:
        "{params.title}"
    shell:
        "printf %s {params.spec:q} | ltpipe overview --spec -"
        " --output {params.folder:q} > {log:q} 2>&1"


# A path for people. The mark carries the digest and goes when another report is published: with a
# path of its own alone, a report would be stale once Snakemake's records are lost.
rule publish:
    input:
        ancient("results/experiments/{experiment}/{digest}/manifest.json"),
    output:
        touch("results/experiments/{experiment}/published/{digest}"),
    log:
        "results/logs/experiments/{experiment}/{digest}.published.log",
    wildcard_constraints:
        experiment="[^/]+",
        digest="[0-9a-f]{10}",
    localrule: True
    conda:
        "../../environment.yml"
    message:
        "Publish the report as results/experiments/{wildcards.experiment}/latest"
    shell:
        "ltpipe publish results/experiments/{wildcards.experiment}/{wildcards.digest}"
        " > {log:q} 2>&1"


FINISHED = [
    f"results/experiments/{name}/published/{Path(folder).name}"
    for name, folder in RUN.reports.items()
]


rule report:
    input:
        FINISHED,
