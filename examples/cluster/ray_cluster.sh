#!/usr/bin/env bash
# Start a Ray cluster inside a SLURM job and train an experiment on it; report in runs/EXPERIMENT.
#
#     sbatch --nodes=4 --cpus-per-task=16 examples/cluster/ray_cluster.sh mixers --seeds 0 1 2
#
# The folder that it is submitted from must be seen by all nodes. Without Ray, one training a task
# of a job array is simpler: dmamba experiment NAME --slurm FILE.
#SBATCH --job-name=dmamba-ray
#SBATCH --ntasks-per-node=1
#SBATCH --time=24:00:00
set -euo pipefail

port=6379
mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes[0]}
address=$(srun --nodes=1 --ntasks=1 --nodelist="$head" hostname --ip-address | awk '{print $1}')

srun --nodes=1 --ntasks=1 --nodelist="$head" \
    ray start --head --node-ip-address="$address" --port="$port" \
    --num-cpus="${SLURM_CPUS_PER_TASK:-1}" --block &
sleep 20
if ((${#nodes[@]} > 1)); then
    others=$((${#nodes[@]} - 1))
    srun --nodes="$others" --ntasks="$others" --exclude="$head" \
        ray start --address="$address:$port" --num-cpus="${SLURM_CPUS_PER_TASK:-1}" --block &
    sleep 20
fi

# Processes of this job alone end with it, Ray's among them.
python examples/cluster/ray_experiment.py "$@" \
    --address "$address:$port" --cells "$SLURM_SUBMIT_DIR/runs/cells"
