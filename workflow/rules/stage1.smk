rule train:
    input:
        needs("stage1"),
    output:
        model="results/stage1/{dataset}/{backbone}/{digest}/seed{seed}/model.safetensors",
        history="results/stage1/{dataset}/{backbone}/{digest}/seed{seed}/history.csv",
        manifest="results/stage1/{dataset}/{backbone}/{digest}/seed{seed}/manifest.json",
    log:
        "results/logs/stage1/{dataset}/{backbone}/{digest}/seed{seed}.log",
    benchmark:
        "results/benchmarks/stage1/{dataset}/{backbone}/{digest}/seed{seed}.tsv"
    wildcard_constraints:
        digest=digests("stage1"),
        seed=r"\d+",
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=4000,
        runtime=1440,
        gpu=GPU_PER_JOB,
    params:
        spec=spec_of("stage1"),
        code=code_of("stage1"),
        roles=roles_of("stage1"),
        title=title_of("stage1"),
        folder=subpath(output.manifest, parent=True),
    message:
        "{params.title}"
    shell:
        "ltpipe train --spec {params.spec:q} --code {params.code} {params.roles:q}"
        " --output {params.folder:q} --threads {threads} --processes {resources.gpu}"
        " > {log:q} 2>&1"


rule stage1:
    input:
        manifests("data", "stage1"),
