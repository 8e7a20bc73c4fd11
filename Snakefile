# Long-tailed image classification: from images to table.
#
#   snakemake --cores N                                            the default experiment
#   snakemake --cores N --configfile config/experiments/X.yaml     another one
#   snakemake --cores N stage2                                     classifiers only
from snakemake.utils import min_version

min_version("9.19")


# An experiment file stands for itself: one named on the command line replaces the default one and
# is not merged into it.
if not workflow.overwrite_configfiles:

    configfile: workflow.source_path("config/config.yaml")


include: "workflow/rules/common.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/stage1.smk"
include: "workflow/rules/features.smk"
include: "workflow/rules/stage2.smk"
include: "workflow/rules/report.smk"


onstart:
    # Not run by dry runs, nor by the Snakemakes that a cluster's jobs start.
    if WORKLOAD.head.preload and workflow.local_exec:
        start_server()


rule all:
    default_target: True
    input:
        FINISHED,
