#!/bin/bash
# A chain of guaranteed jobs by hand, across their time limits: each resumes from the newest checkpoint of the one
# before it, in a run directory of its own. What is trained after the last checkpoint (checkpoint.every) is trained
# again.
#
#   sbatch chain.sh job.toml [more options of `liver-slurm submit`]
#
# This is a job of one CPU and some seconds: it submits the guaranteed job, and itself again for when that has ended.
# The chain ends when the run is finished, fails or is cancelled. `squeue --name=liver-chain` shows the next link;
# cancel it to end the chain after the job that runs.

#SBATCH --job-name=liver-chain
#SBATCH --output=%x-%j.out
#SBATCH --ntasks=1
#SBATCH --time=10:00

set -u
LIVER_SLURM=${LIVER_SLURM:-liver-slurm}
# The guaranteed job that this link comes after; the first link has none.
previous=${LIVER_CHAIN_JOB:-}
resume=()
if [ -n "$previous" ]; then
    state=$(squeue --noheader --states=all --jobs="$previous" --format=%T 2> /dev/null | head -n 1)
    # Slurm itself forgets a job some minutes after its end; its accounting does not.
    [ -n "$state" ] || state=$(sacct --noheader -X --jobs="$previous" --format=State 2> /dev/null | head -n 1)
    read -r state _ <<< "$state"
    # A run that saw its time limit coming wrote a checkpoint and ended by itself; Slurm does not know why.
    run=$("$LIVER_SLURM" status "$previous" --json | sed -n 's/^ *"state": *"\([a-z]*\)".*/\1/p' | head -n 1)
    case $run:$state in
    stopped:* | *:TIMEOUT | *:NODE_FAIL | *:BOOT_FAIL | *:PREEMPTED | *:DEADLINE) resume=(--resume "$previous") ;;
    lost: | :)
        echo "chain.sh: Slurm has forgotten how job $previous ended, and there is no accounting (sacct) to ask, so" \
            "the chain ends; to go on, submit this script once more, with --resume $previous after the job file" >&2
        ;;
    esac
    echo "chain.sh: job $previous ended${state:+ $state}; the run: ${run:-unknown}"
    [ -n "${resume[*]}" ] || exit 0
fi

submitted=$("$LIVER_SLURM" submit "$@" --set live.successor=false "${resume[@]}" --json) || exit
job=$(sed -n 's/.*"job_id": *"\([0-9]*\)".*/\1/p' <<< "$submitted")
echo "chain.sh: submitted job $job"

# $0 is Slurm's copy of this script, header and all. Options of the first sbatch command are not in it: write them
# above.
exec sbatch --dependency=afterany:"$job" --export=ALL,LIVER_CHAIN_JOB="$job" "$0" "$@"
