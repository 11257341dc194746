#!/usr/bin/env bash
# A run of Charter on several nodes under Slurm: sbatch examples/slurm.sh my.yaml /shared/runs/my
# After a preemption, a time limit or the loss of a node, Slurm requeues the job, and the same command resumes from the last
# checkpoint. The run folder must be on a disk that all nodes see.
#SBATCH --job-name=charter
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@120
#SBATCH --output=%x-%j.log
set -euo pipefail

recipe=${1:?usage: sbatch slurm.sh RECIPE FOLDER}
folder=${2:?usage: sbatch slurm.sh RECIPE FOLDER}

# Two minutes before the time limit the job goes back into the queue, unless the run is done first.
requeue() {
    trap - TERM
    echo "time is nearly up; back into the queue"
    scontrol requeue "$SLURM_JOB_ID"
}
trap requeue TERM

export OMP_NUM_THREADS=${OMP_NUM_THREADS:-8}
export HF_HUB_OFFLINE=${HF_HUB_OFFLINE:-1} # download models beforehand: compute nodes often have no network
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
port=$((20000 + SLURM_JOB_ID % 20000))

# A shell that waits in the foreground receives no signal, hence `&` and `wait`.
srun --kill-on-bad-exit=1 torchrun \
    --nnodes "$SLURM_NNODES" \
    --nproc-per-node "$SLURM_GPUS_ON_NODE" \
    --rdzv-id "$SLURM_JOB_ID" \
    --rdzv-backend c10d \
    --rdzv-endpoint "$first:$port" \
    -m charter run "$recipe" --out "$folder" &
wait $!
