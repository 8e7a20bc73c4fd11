#!/usr/bin/env bash
# Brings up a SLURM of one node and two slots, runs a cut-down demo through workflow/profiles/slurm,
# loses a training's node on the way, and shows when each job ran; then a hundred short jobs, which
# the profile groups. Run as root:
#
#   tests/slurm/run.sh [FOLDER]
#
# Needs Debian's slurmctld, slurmd, slurm-client and munge, and
# pip install snakemake-executor-plugin-slurm. Status 77: something of these is missing.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
repository=$(cd "$here/../.." && pwd)
python=${PYTHON:-python}
folder=${1:-$(mktemp -d)}
mkdir -p "$folder/work"
"$python" -c 'import snakemake_executor_plugin_slurm' 2>/dev/null ||
  { echo "run.sh: pip install snakemake-executor-plugin-slurm" >&2; exit 77; }

"$here/cluster.sh" up "$folder/cluster"
run=
trap '[ -z "$run" ] || kill -9 "$run" 2>/dev/null || true; "$here/cluster.sh" down "$folder/cluster"' EXIT
cp "$here/experiment.yaml" "$folder/work"
cd "$folder/work"
export PYTHONPATH="$repository${PYTHONPATH:+:$PYTHONPATH}" LTPIPE_DEVICE=cpu OMP_NUM_THREADS=1

# A cluster of two slots, without accounting, whose node has its files at once. What asks for less
# memory than the profile says is what this machine may not have.
"$python" -m snakemake -s "$repository/Snakefile" --configfile experiment.yaml \
  --profile "$repository/workflow/profiles/slurm" \
  --default-resources slurm_partition=main "mem_mb=attempt*1000" runtime=10 \
  --set-resources train:slurm_partition=gpu train:mem_mb="attempt*2000" train:runtime=10 train:gpu=1 \
  embed:mem_mb=2000 embed:gpu=1 embed:slurm_partition=gpu classify:mem_mb=2000 classify:gpu=0 \
  --set-threads train=1 embed=1 --cores 2 --group-components short=1 short_draw=1 \
  --latency-wait 5 --slurm-init-seconds-before-status-checks 2 --slurm-status-command squeue \
  > snakemake.log 2>&1 &
run=$!

# The node of the first training is lost once it has a checkpoint.
for _ in $(seq 3000); do
  kill -0 "$run" 2>/dev/null || break
  if compgen -G "results/stage1/*/*/*/seed*/resume/checkpoint.safetensors" > /dev/null; then
    job=$(squeue -h -t running -o "%i" -S i | head -1)
    echo "requeue of job $job"
    scontrol requeue "$job"
    # SLURM would wait two minutes before it starts the job again.
    for _ in $(seq 50); do
      sleep 0.2
      scontrol update jobid="$job" starttime=now 2>/dev/null && break
    done
    break
  fi
  sleep 0.2
done
if ! wait "$run"; then tail -60 snakemake.log; exit 1; fi
run=
tail -4 snakemake.log
"$python" "$here/timeline.py"
"$python" -m ltpipe verify
"$python" -m ltpipe table results/experiments/slurm
grep -h "going on after epoch" -r results/logs/stage1

# A hundred classifiers of a second each: two submissions, not a hundred.
cd "$folder"
mkdir -p short
PYTHONPATH="$here:$PYTHONPATH" "$python" "$here/short.py" write short
cd short
"$python" -m snakemake -s "$repository/Snakefile" --configfile short.yaml \
  --profile "$repository/workflow/profiles/slurm" \
  --default-resources slurm_partition=main "mem_mb=attempt*500" runtime=10 \
  --set-resources classify:mem_mb=700 classify:gpu=0 classify:runtime=5 --cores 2 \
  --latency-wait 5 --slurm-init-seconds-before-status-checks 2 --slurm-status-command squeue \
  > snakemake.log 2>&1 || { tail -60 snakemake.log; exit 1; }
"$python" "$here/short.py" count
