#!/bin/bash
# MIP's trials as a SLURM array: one worker per task, and the lead beside the first one. Tasks may start whenever there is
# room for them and be preempted at any time; two minutes before its time limit a worker hands back its trial and is put
# into the queue again. Killed altogether? Submit the same again: what was finished is not made twice.
#
#     sbatch examples/mip_array.sh
#
# Where nodes cannot share a study (its journal needs a folder that all see, and Optuna), rounds are planned beside the
# array, on the login node; the loop ends with the search, or when a task fails:
#
#     export FOLDER=runs/mip
#     while python examples/mip_many_machines.py plan --folder "$FOLDER" && sbatch --wait examples/mip_array.sh; do :; done
#
#SBATCH --job-name=mip
#SBATCH --array=0-15
#SBATCH --ntasks=1
#SBATCH --gpus-per-task=1
#SBATCH --cpus-per-task=4
#SBATCH --time=04:00:00
#SBATCH --signal=SIGUSR1@120
#SBATCH --requeue
#SBATCH --open-mode=append

export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"  # srun does not take it from sbatch by itself

if [ -n "$FOLDER" ]; then
    srun python examples/mip_many_machines.py trial --folder "$FOLDER" \
        --id "$SLURM_ARRAY_TASK_ID" --of "$SLURM_ARRAY_TASK_COUNT"
    exit
fi

STUDY="${STUDY:-runs/mip/study.journal}"
if [ "$SLURM_ARRAY_TASK_ID" = "$SLURM_ARRAY_TASK_MIN" ]; then
    python examples/mip_many_machines.py lead --study "$STUDY" --recipe "${RECIPE:-bpe_mip}" &
fi
srun python examples/mip_many_machines.py work --study "$STUDY"
code=$?
wait  # for the lead, in the task that has it
exit $code
