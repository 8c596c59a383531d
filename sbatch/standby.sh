#!/bin/bash
# A standby by hand: workers that join a run, and leave it on a notice. liver-slurm submits such jobs itself
# (standby.max_jobs in the job file); this is for clusters where jobs may not submit jobs, for a unit of another size,
# or to lend a run some nodes. One that nobody needs waits, harmless, and ends with the run.
#
#   sbatch --partition=scavenger standby.sh RUN_DIR [more options of liver_slurm.worker]
#
# The run takes it if its standby.max_jobs is not 0; where it should submit none itself, its coordinator gets --source
# none (see single.sh).
#
# RUN_DIR is what `liver-slurm submit` printed. PYTHON names the interpreter on the nodes; where it is in a container,
# see container.sh. With CONTAINER_IMAGE set, Pyxis starts the workers in that image.

#SBATCH --job-name=liver-standby
#SBATCH --output=%x-%j.out
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=1
# One task for each GPU; all tasks of a node see all of its GPUs:
##SBATCH --gres=gpu:1
# Slurm plans badly around jobs without a limit.
#SBATCH --time=4:00:00
# A standby that came back under its old id would be a stranger to its run. No --no-kill here: with it, workers on a
# node that is set DOWN are killed without a word.
#SBATCH --no-requeue
# Word of the time limit this many seconds ahead; preemption is told of by SIGTERM.
#SBATCH --signal=USR2@60

set -u
if [ ! -e "${1:-}/run.json" ]; then
    echo "standby.sh: '${1:-}' is not a run directory; usage: sbatch standby.sh RUN_DIR" >&2
    exit 2
fi
export RUN_DIR=$1
shift

# What the nodes need before Python starts, for instance:
# module load cuda

container=()
if [ -n "${CONTAINER_IMAGE:-}" ]; then
    if ! srun --help | grep -q -- --container-image; then
        echo "standby.sh: srun has no --container-image here (Pyxis); unset CONTAINER_IMAGE, or see container.sh" >&2
        exit 2
    fi
    # Folders that the job file names must be in the container too.
    container=(--container-image="$CONTAINER_IMAGE" --container-mounts="$RUN_DIR:$RUN_DIR")
fi

export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$SLURM_CPUS_PER_TASK}
# From Slurm 22.05 on srun does not take the CPUs of a task from the job. A worker that leaves must not end the
# others, as srun's usual --kill-on-bad-exit=1 --wait=60 would.
srun --cpus-per-task="$SLURM_CPUS_PER_TASK" --mpi=none --no-kill --kill-on-bad-exit=0 --wait=0 "${container[@]}" \
    "${PYTHON:-python3}" -m liver_slurm.worker "$RUN_DIR" --role standby "$@"
