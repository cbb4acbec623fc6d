#!/bin/bash
# sbatch --nodes 2 --gpus-per-node 8 slurm.sh recipe.yaml runs/dpo
# One torchrun on each node. Two minutes before the time limit, and when it is preempted, the job goes back into the
# queue: SIGTERM ends the step with a checkpoint, and the next start continues from it.
#SBATCH --job-name preftune
#SBATCH --ntasks-per-node 1
#SBATCH --cpus-per-task 16
#SBATCH --requeue
#SBATCH --signal B:USR1@120
set -euo pipefail

recipe=$1 output=$2
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
trap 'scontrol requeue "$SLURM_JOB_ID"' USR1

srun --kill-on-bad-exit=1 torchrun \
    --nnodes "$SLURM_NNODES" \
    --nproc_per_node "${SLURM_GPUS_ON_NODE:-1}" \
    --rdzv_id "$SLURM_JOB_ID" \
    --rdzv_backend c10d \
    --rdzv_endpoint "$first:29500" \
    -m preftune dpo --config "$recipe" --output_dir "$output" --fsdp hybrid_shard --resume auto &
wait $!
