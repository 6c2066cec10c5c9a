#!/bin/bash
# A run that outlives its time limit: two minutes before the end SLURM signals every process, the run writes
# checkpoints/last.ckpt and requeues the job, and the next start of the same job goes on from there. So it does after a
# preemption or the failure of a node. The run directory is the job's own, and stays the same in every start. Several
# processes finish a validation that is under way first: warn them earlier than that takes.
#
#     sbatch examples/slurm.sh
#
#SBATCH --job-name=hrank
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=2
#SBATCH --gpus-per-node=2
#SBATCH --cpus-per-task=4
#SBATCH --time=04:00:00
#SBATCH --signal=SIGUSR1@120
#SBATCH --requeue
#SBATCH --open-mode=append

export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"  # srun does not take it from sbatch by itself
srun --kill-on-bad-exit=1 python -m lit_methods.fit hrank_cifar10_resnet56 \
    --model.base_checkpoint resnet56.npz --data.root data/cifar10 \
    --trainer.num_nodes "$SLURM_NNODES" --trainer.devices "$SLURM_NTASKS_PER_NODE" --trainer.strategy ddp \
    --run_dir "runs/$SLURM_JOB_NAME-$SLURM_JOB_ID"
