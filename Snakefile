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
include: "workflow/rules/stages.smk"
include: "workflow/rules/pages.smk"


# A cluster's jobs find the plan of this run by it.
envvars:
    "LTPIPE_PLAN",


onstart:
    # Not run by dry runs, nor by the Snakemakes that a cluster's jobs start.
    begin_run()


rule all:
    default_target: True
    input:
        FINISHED,
