#!/usr/bin/env bash
# A SLURM of one node on this machine's loopback, for tests: no systemd, no cgroups, no database.
#
#   cluster.sh up FOLDER      everything that it writes goes below FOLDER
#   cluster.sh down FOLDER
#
# Needs root and Debian's packages:
#   apt-get install --no-install-recommends slurmctld slurmd slurm-client munge
set -euo pipefail
action=${1:?up or down}
folder=$(readlink -m "${2:?a folder}")
host=$(hostname -s)
linked=(slurm.conf gres.conf)

down() {
  for pid_file in "$folder"/slurmd.pid "$folder"/slurmctld.pid "$folder"/munge/munged.pid; do
    [ -s "$pid_file" ] || continue
    pid=$(cat "$pid_file")
    kill "$pid" 2>/dev/null || true
    for _ in $(seq 100); do kill -0 "$pid" 2>/dev/null || break; sleep 0.1; done
  done
  for name in "${linked[@]}"; do
    if [ "$(readlink "/etc/slurm/$name" || true)" = "$folder/$name" ]; then rm -f "/etc/slurm/$name"; fi
  done
}

if [ "$action" = down ]; then down; exit 0; fi

[ "$(id -u)" = 0 ] || { echo "cluster.sh: must run as root" >&2; exit 77; }
for program in munged slurmctld slurmd sbatch; do
  command -v "$program" >/dev/null || { echo "cluster.sh: $program is not installed" >&2; exit 77; }
done
getent hosts "$host" | grep -q '^127\.' ||
  { echo "cluster.sh: add '127.0.0.1 $host' to /etc/hosts" >&2; exit 77; }
for name in "${linked[@]}"; do
  if [ -e "/etc/slurm/$name" ]; then
    echo "cluster.sh: /etc/slurm/$name is there; this machine has a SLURM of its own" >&2; exit 77
  fi
done

mkdir -p "$folder"/{munge,controller,spool,log}
chmod 700 "$folder/munge"
head -c 128 /dev/urandom > "$folder/munge/key"
chmod 400 "$folder/munge/key"
# Stands in for a GPU, so that jobs which ask for one take turns and are told which.
[ -c "$folder/gpu0" ] || mknod "$folder/gpu0" c 1 3
memory=$(awk '/MemTotal/ {print int($2 / 1024 * 0.9)}' /proc/meminfo)

cat > "$folder/slurm.conf" <<EOF
ClusterName=loopback
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=${CONTROLLER_PORT:-16817}
SlurmdPort=${NODE_PORT:-16818}
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket=$folder/munge/socket
StateSaveLocation=$folder/controller
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/log/slurmctld.log
SlurmdLogFile=$folder/log/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=sched_interval=2,bf_interval=5
JobRequeue=1
MinJobAge=86400
ReturnToService=2
KillWait=2
GresTypes=gpu
NodeName=$host NodeAddr=127.0.0.1 CPUs=${SLOTS:-2} RealMemory=$memory Gres=gpu:1 State=UNKNOWN
PartitionName=main Nodes=$host Default=YES MaxTime=UNLIMITED State=UP
PartitionName=gpu Nodes=$host MaxTime=UNLIMITED State=UP
EOF
echo "NodeName=$host Name=gpu File=$folder/gpu0" > "$folder/gres.conf"
# Jobs of the executor plug-in start srun without SLURM_CONF, so the usual place must name it.
mkdir -p /etc/slurm
for name in "${linked[@]}"; do ln -s "$folder/$name" "/etc/slurm/$name"; done

trap down ERR
munged --force --key-file="$folder/munge/key" --socket="$folder/munge/socket" \
  --pid-file="$folder/munge/munged.pid" --log-file="$folder/munge/log" --seed-file="$folder/munge/seed"
slurmctld -i
slurmd
for _ in $(seq 100); do
  if sinfo -h -o %T 2>/dev/null | grep -q idle; then sinfo; exit 0; fi
  sleep 0.2
done
tail -5 "$folder"/log/*.log >&2
down
echo "cluster.sh: the node did not become idle" >&2
exit 1
