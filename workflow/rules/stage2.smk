rule classify:
    input:
        needs("stage2"),
    output:
        models="results/stage2/{dataset}/{method}/{digest}/seed{seed}/models.safetensors",
        predictions="results/stage2/{dataset}/{method}/{digest}/seed{seed}/predictions.h5",
        metrics="results/stage2/{dataset}/{method}/{digest}/seed{seed}/metrics.csv",
        manifest="results/stage2/{dataset}/{method}/{digest}/seed{seed}/manifest.json",
    wildcard_constraints:
        digest=digests("stage2"),
        seed=r"\d+",
    params:
        spec=spec_of("stage2"),
        code=code_of("stage2"),
        roles=roles_of("stage2"),
        folder=subpath(output.manifest, parent=True),
    threads: 1
    resources:
        mem_mb=4000,
        runtime=120,
        gpu=GPU_PER_JOB,
    log:
        "results/logs/stage2/{dataset}/{method}/{digest}/seed{seed}.log",
    benchmark:
        "results/benchmarks/stage2/{dataset}/{method}/{digest}/seed{seed}.tsv"
    conda:
        "../../environment.yml"
    message:
        "Run {wildcards.method} ({wildcards.digest}) on {wildcards.dataset}, seed {wildcards.seed}"
    shell:
        "ltpipe classify --spec {params.spec:q} --code {params.code} {params.roles:q}"
        " --output {params.folder:q} --threads {threads} > {log:q} 2>&1"


rule stage2:
    input:
        manifests("data", "stage2"),
