rule draw:
    input:
        needs("data"),
    output:
        subset="results/data/{dataset}/{digest}/subset.h5",
        manifest="results/data/{dataset}/{digest}/manifest.json",
    log:
        "results/logs/data/{dataset}/{digest}.log",
    benchmark:
        "results/benchmarks/data/{dataset}/{digest}.tsv"
    wildcard_constraints:
        digest=digests("data"),
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=30,
    params:
        spec=spec_of("data"),
        code=code_of("data"),
        roles=roles_of("data"),
        title=title_of("data"),
        folder=subpath(output.manifest, parent=True),
    message:
        "{params.title}"
    shell:
        "ltpipe draw --spec {params.spec:q} --code {params.code} {params.roles:q}"
        " --output {params.folder:q} --threads {threads} > {log:q} 2>&1"
