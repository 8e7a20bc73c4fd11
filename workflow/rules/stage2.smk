rule filter:
    input:
        needs("filters"),
    output:
        flow="results/filters/{dataset}/{backbone}/{digest}/seed{seed}/filter.safetensors",
        split="results/filters/{dataset}/{backbone}/{digest}/seed{seed}/filter.h5",
        history="results/filters/{dataset}/{backbone}/{digest}/seed{seed}/history.csv",
        manifest="results/filters/{dataset}/{backbone}/{digest}/seed{seed}/manifest.json",
    log:
        "results/logs/filters/{dataset}/{backbone}/{digest}/seed{seed}.log",
    benchmark:
        "results/benchmarks/filters/{dataset}/{backbone}/{digest}/seed{seed}.tsv"
    wildcard_constraints:
        digest=digests("filter"),
        seed=r"\d+",
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=8000,
        runtime=480,
        gpu=GPU_PER_JOB,
    params:
        spec=spec_of("filters"),
        code=code_of("filters"),
        roles=roles_of("filters"),
        title=title_of("filters"),
        folder=subpath(output.manifest, parent=True),
    message:
        "{params.title}"
    shell:
        "ltpipe filter --spec {params.spec:q} --code {params.code} {params.roles:q}"
        " --output {params.folder:q} --threads {threads} > {log:q} 2>&1"


rule classify:
    input:
        needs("stage2"),
    output:
        models="results/stage2/{dataset}/{method}/{digest}/seed{seed}/models.safetensors",
        predictions="results/stage2/{dataset}/{method}/{digest}/seed{seed}/predictions.h5",
        metrics="results/stage2/{dataset}/{method}/{digest}/seed{seed}/metrics.csv",
        manifest="results/stage2/{dataset}/{method}/{digest}/seed{seed}/manifest.json",
    log:
        "results/logs/stage2/{dataset}/{method}/{digest}/seed{seed}.log",
    benchmark:
        "results/benchmarks/stage2/{dataset}/{method}/{digest}/seed{seed}.tsv"
    wildcard_constraints:
        digest=digests("stage2"),
        seed=r"\d+",
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=4000,
        runtime=120,
        gpu=GPU_PER_JOB,
    params:
        spec=spec_of("stage2"),
        code=code_of("stage2"),
        roles=roles_of("stage2"),
        title=title_of("stage2"),
        folder=subpath(output.manifest, parent=True),
    message:
        "{params.title}"
    shell:
        "ltpipe classify --spec {params.spec:q} --code {params.code} {params.roles:q}"
        " --output {params.folder:q} --threads {threads} > {log:q} 2>&1"


rule stage2:
    input:
        manifests("data", "stage2"),
