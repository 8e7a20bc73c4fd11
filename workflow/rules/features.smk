rule embed:
    input:
        needs("features"),
    output:
        train="results/features/{dataset}/{backbone}/{digest}/seed{seed}/train.h5",
        val="results/features/{dataset}/{backbone}/{digest}/seed{seed}/val.h5",
        test="results/features/{dataset}/{backbone}/{digest}/seed{seed}/test.h5",
        manifest="results/features/{dataset}/{backbone}/{digest}/seed{seed}/manifest.json",
    log:
        "results/logs/features/{dataset}/{backbone}/{digest}/seed{seed}.log",
    benchmark:
        "results/benchmarks/features/{dataset}/{backbone}/{digest}/seed{seed}.tsv"
    wildcard_constraints:
        digest=digests("features"),
        seed=r"\d+",
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=4000,
        runtime=480,
        gpu=GPU_PER_JOB,
    params:
        spec=spec_of("features"),
        code=code_of("features"),
        roles=roles_of("features"),
        title=title_of("features"),
        folder=subpath(output.manifest, parent=True),
    message:
        "{params.title}"
    shell:
        "ltpipe embed --spec {params.spec:q} --code {params.code} {params.roles:q}"
        " --output {params.folder:q} --threads {threads} > {log:q} 2>&1"


rule take_over:
    input:
        needs("features"),
    output:
        train="results/features/{dataset}/{backbone}/{digest}/seed{seed}/train.h5",
        val="results/features/{dataset}/{backbone}/{digest}/seed{seed}/val.h5",
        test="results/features/{dataset}/{backbone}/{digest}/seed{seed}/test.h5",
        manifest="results/features/{dataset}/{backbone}/{digest}/seed{seed}/manifest.json",
    log:
        "results/logs/features/{dataset}/{backbone}/{digest}/seed{seed}.log",
    benchmark:
        "results/benchmarks/features/{dataset}/{backbone}/{digest}/seed{seed}.tsv"
    wildcard_constraints:
        digest=digests("import"),
        seed="0",
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=4000,
        runtime=60,
    params:
        spec=spec_of("features"),
        code=code_of("features"),
        roles=roles_of("features"),
        title=title_of("features"),
        folder=subpath(output.manifest, parent=True),
    message:
        "{params.title}"
    shell:
        "ltpipe import --spec {params.spec:q} --code {params.code} {params.roles:q}"
        " --output {params.folder:q} --threads {threads} > {log:q} 2>&1"


rule features:
    input:
        manifests("data", "features", "import"),
