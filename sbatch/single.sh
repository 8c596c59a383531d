#!/bin/bash
# A run in one ordinary allocation: the workers and the coordinator are the parts of one step, `srun … : …`. For
# clusters where heterogeneous jobs are not wanted (they start by backfill only, and all parts at once). Standbys join
# it as ever.
#
#   run_dir=$(liver-slurm submit job.toml --prepare)
#   sbatch single.sh "$run_dir" [more options of liver_slurm.coordinator, such as --source none: no standbys of its own]
#
# Slurm wants the parts of such a step on nodes of their own, so the last node is the coordinator's; where that is too
# dear, use a heterogeneous job (`liver-slurm submit job.toml`). And a step is started once: if the coordinator is
# lost, the workers write a checkpoint after job.orphan_timeout and end, and `liver-slurm submit --resume` goes on
# from it.
#
# PYTHON names the interpreter on the nodes; where it is in a container, see container.sh. With CONTAINER_IMAGE set,
# Pyxis starts the workers in that image.

#SBATCH --job-name=liver
#SBATCH --output=%x-%j.out
#SBATCH --time=1:00:00
# One node more than the job file's guaranteed workers need: here for its nodes = 2, tasks_per_node = 1.
#SBATCH --nodes=3
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=1
##SBATCH --gres=gpu:1
# A lost node is the workers' affair, not the end of the job. With --requeue, Slurm may start it again, and the run goes
# on from its newest checkpoint.
#SBATCH --no-kill
#SBATCH --no-requeue

set -u
if [ ! -e "${1:-}/run.json" ]; then
    echo "single.sh: '${1:-}' is not a run directory; see \`liver-slurm submit --prepare\`" >&2
    exit 2
fi
export RUN_DIR=$1
shift

# What the nodes need before Python starts, for instance:
# module load cuda

container=()
if [ -n "${CONTAINER_IMAGE:-}" ]; then
    if ! srun --help | grep -q -- --container-image; then
        echo "single.sh: srun has no --container-image here (Pyxis); unset CONTAINER_IMAGE, or see container.sh" >&2
        exit 2
    fi
    # Folders that the job file names must be in the container too. The coordinator stays outside: it talks to Slurm.
    container=(--container-image="$CONTAINER_IMAGE" --container-mounts="$RUN_DIR:$RUN_DIR")
fi

nodes=$((SLURM_JOB_NUM_NODES - 1))
if [ "$nodes" -lt 1 ]; then
    echo "single.sh: $SLURM_JOB_NUM_NODES node is not enough: the last one is the coordinator's; ask for 2 or more" >&2
    exit 2
fi
workers=$((nodes * SLURM_NTASKS_PER_NODE))
cpus=$SLURM_CPUS_PER_TASK
# srun would take these for the wish of each part.
unset SLURM_NNODES SLURM_NTASKS SLURM_NPROCS SLURM_NTASKS_PER_NODE SLURM_CPUS_PER_TASK

# The workers come first, so that they are tasks 0, 1, 2, … One that leaves or dies takes no other with it, as srun's
# usual --kill-on-bad-exit=1 --wait=60 would have it.
# shellcheck disable=SC2016 # the words are for the inner shell
srun --nodes="$nodes" --ntasks="$workers" --cpus-per-task="$cpus" --mpi=none --no-kill --kill-on-bad-exit=0 --wait=0 \
    "${container[@]}" env OMP_NUM_THREADS="${OMP_NUM_THREADS:-$cpus}" \
    "${PYTHON:-python3}" -m liver_slurm.worker "$RUN_DIR" --role live : \
    --nodes=1 --ntasks=1 --mpi=none --no-kill --kill-on-bad-exit=0 --wait=0 \
    bash -c 'exec "$@" >> "$RUN_DIR/logs/coordinator.log" 2>&1' coordinator \
    "${PYTHON:-python3}" -m liver_slurm.coordinator "$RUN_DIR" "$@"
