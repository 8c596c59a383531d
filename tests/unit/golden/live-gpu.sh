#!/bin/bash
# The guaranteed job of a run: a heterogeneous Slurm job. Component 0 is the coordinator, one CPU task; components 1 and
# up are the live world's workers, and may differ in nodes, CPUs, GPUs and memory. Reclaimable nodes are never a
# component: Slurm preempts a heterogeneous job as a whole.
#
# `liver-slurm submit --dry-run` prints this script filled in. It may be changed and given to sbatch by hand; arguments
# after its name reach the coordinator. The run directory must have been made by `liver-slurm submit`.

# Component 0: the coordinator.
#SBATCH --job-name='gpt 70b'"'"'s'
#SBATCH --output=/shared/runs/liver-20260102-030405-abcd/logs/slurm-%j.out
#SBATCH --open-mode=append
#SBATCH --partition=cpu
#SBATCH --time=2-00:00:00
#SBATCH --account=lab
#SBATCH --qos=high
#SBATCH --comment=/shared/runs/liver-20260102-030405-abcd
#SBATCH --export=ALL
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=1
#SBATCH --mem=2G
#SBATCH --no-kill
#SBATCH --requeue

#SBATCH hetjob
# Workers: 32, 8 on each node.
#SBATCH --partition=gpu
#SBATCH --time=2-00:00:00
#SBATCH --account=lab
#SBATCH --qos=high
#SBATCH --comment=/shared/runs/liver-20260102-030405-abcd
#SBATCH --export=ALL
#SBATCH --nodes=4
#SBATCH --ntasks=32
#SBATCH --cpus-per-task=12
#SBATCH --mincpus=96
#SBATCH --gres=gpu:8
#SBATCH --mem=900G
#SBATCH --constraint='h100&ib'
#SBATCH --no-kill
#SBATCH --requeue

set -u
export RUN_DIR=/shared/runs/liver-20260102-030405-abcd
PYTHON=/opt/liver/bin/python
STARTED=$RUN_DIR/logs/coordinator-$SLURM_JOB_ID.started
# Set by the coordinator of the job that this one succeeds: the run moves over before that job's time limit. Until then
# both jobs' workers are there, so they have different names; and this job's coordinator waits for its turn.
SUCCEEDS=${LIVER_SUCCEEDS:-}
WORKERS=live${SUCCEEDS:+-$SLURM_JOB_ID}
# Seconds that workers have to end on their own once the run is over; half of it again after a SIGTERM.
PATIENCE=20

# How each process is started, with its name as $0 and its threads as $1. The positional parameters are put away first,
# because a sourced file would take them for its own. Standbys inherit the coordinator's environment, so it gets no number
# of threads. The process replaces the shell, so that signals reach it.
read -r -d '' LAUNCH <<'LIVER_LAUNCH' || true
[ "$0" = coordinator ] && log=coordinator || log=$0-$SLURM_PROCID
exec >> "$RUN_DIR/logs/$log.log" 2>&1
threads=$1 command=("${@:2}"); set --
module load cuda/12.4
export NCCL_SOCKET_IFNAME="ib0"
[ "$0" = coordinator ] || export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$threads}"
[ -z "${LIVER_STARTED:-}" ] || : > "$LIVER_STARTED"
exec "${command[@]}"
LIVER_LAUNCH

# Slurm describes component 0 here, and srun would take that for the wish of every step. So would it take variables that
# came with the submission from a login shell or a site's module: a SLURM_TIMELIMIT would end the steps. Each step says
# what it wants.
for name in SLURM_MEM_PER_NODE SLURM_MEM_PER_CPU SLURM_MEM_PER_GPU SLURM_CPUS_PER_TASK SLURM_CPUS_PER_GPU SLURM_TRES_PER_TASK SLURM_NTASKS SLURM_NPROCS SLURM_NTASKS_PER_NODE SLURM_NTASKS_PER_CORE SLURM_NTASKS_PER_SOCKET SLURM_NTASKS_PER_GPU SLURM_NTASKS_PER_TRES SLURM_NNODES SLURM_GRES SLURM_GRES_FLAGS SLURM_STEP_GRES SLURM_STEP_TRES SLURM_TIMELIMIT SLURM_THREADS_PER_CORE SLURM_CORE_SPEC SLURM_HINT SLURM_DISTRIBUTION SLURM_EXCLUSIVE SLURM_OVERCOMMIT SLURM_OVERLAP SLURM_WHOLE SLURM_RELATIVE SLURM_SPREAD_JOB SLURM_USE_MIN_NODES SLURM_REQ_SWITCH SLURM_WAIT4SWITCH SLURM_IMMEDIATE SLURM_WAIT SLURM_KILL_BAD_EXIT SLURM_NO_KILL SLURM_SIGNAL SLURM_MPI_TYPE SLURM_RESV_PORTS SLURM_NETWORK SLURM_PARTITION SLURM_ACCOUNT SLURM_QOS SLURM_RESERVATION SLURM_CONSTRAINT SLURM_CLUSTER_CONSTRAINT SLURM_WCKEY SLURM_CLUSTERS SLURM_DEPENDENCY SLURM_DELAY_BOOT SLURM_STDOUTMODE SLURM_STDERRMODE SLURM_STDINMODE SLURM_UNBUFFEREDIO SLURM_LABELIO SLURM_OPEN_MODE SLURM_WORKING_DIR SLURM_REMOTE_CWD SLURM_CONTAINER SLURM_CONTAINER_ID SLURM_PROLOG SLURM_EPILOG SLURM_TASK_PROLOG SLURM_TASK_EPILOG SLURM_ACCTG_FREQ SLURM_PROFILE SLURM_POWER SLURM_BCAST SLURM_BCAST_EXCLUDE SLURM_COMPRESS SLURM_EXPORT_ENV SLURM_MULTI_PROG SLURM_THREADS SLURM_DEBUG SLURM_TRES_BIND SLURM_TRES_FREQ "${!SRUN_@}" "${!SBATCH_@}" "${!SLURM_CPU_BIND@}" "${!SLURM_MEM_BIND@}" \
    "${!SLURM_GPU@}"; do
    unset "$name"
done

say() { echo "$(date +%FT%T) $*"; }

# ends_within SECONDS PID: whether the child has ended by then.
ends_within() {
    local deadline=$((SECONDS + $1))
    while kill -0 "$2" 2>/dev/null; do
        [ "$SECONDS" -lt "$deadline" ] || return 1
        sleep 0.2
    done
}

# await PID: the child's exit code. A signal that is trapped cuts `wait` short, so it is asked again; and once we are
# told to stop, the child has a minute.
await() {
    local code again
    while wait "$1"; code=$?; kill -0 "$1" 2>/dev/null; do
        [ -z "$stopping" ] || ends_within 60 "$1" || kill -TERM "$1"
    done
    wait "$1" 2>/dev/null; again=$?
    [ "$again" -eq 127 ] || code=$again
    return "$code"
}

# scancel signals every step and this shell. If only this shell was signalled, the steps still have to hear of it.
stopping=
# shellcheck disable=SC2317,SC2329 # called by the trap
stop() {
    stopping=yes
    say "told to stop"
    scancel --signal=TERM "$SLURM_JOB_ID"
}
trap stop TERM

# The workers: one step over all worker components, so that SLURM_PROCID numbers them through. A worker that leaves or
# dies takes no other with it (srun's usual --kill-on-bad-exit=1 --wait=60 would end the whole step); one that has died
# is started again in its place by its parent.
srun \
    --het-group=1 --nodes=4 --ntasks-per-node=8 --cpus-per-task=12 --gres=gpu:8 --mem=0 --export=ALL --mpi=none --no-kill --kill-on-bad-exit=0 --wait=0 \
    bash -c "$LAUNCH" "$WORKERS" 12 \
    "$PYTHON" -m liver_slurm.worker "$RUN_DIR" --role live --names "$WORKERS" --restart &
workers=$!

# The coordinator. The run does not need it to train, so when it is killed or crashes it is started again, ever more
# slowly if that does not help, for as long as there are workers: without a coordinator they write a checkpoint after
# job.orphan_timeout and end. Its own last words are 10 run finished, 11 run failed for good, 13 cancelled, 14 handed over
# to the job that succeeds this one. Bad input (2), no such Python (126, 127) and no such module (1) may be a file system
# that is away for a moment; where no coordinator has lived yet, the third time counts.
deaths=0 served=
while :; do
    rm -f "$STARTED"
    born=$SECONDS
    LIVER_STARTED=$STARTED srun --het-group=0 --mem=0 --export=ALL --mpi=none --overlap --nodes=1 --ntasks=1 --cpus-per-task=1 \
        bash -c "$LAUNCH" coordinator 1 "$PYTHON" -m liver_slurm.coordinator "$RUN_DIR" \
        --decided-codes ${SUCCEEDS:+--succeeds "$SUCCEEDS"} "$@" &
    await $!
    code=$?
    [ -z "$stopping" ] || break
    if [ -e "$STARTED" ]; then
        case $code in
        10 | 11 | 13 | 14)
            code=$((code - 10))
            break
            ;;
        esac
    fi
    [ $((SECONDS - born)) -lt 60 ] || served=yes deaths=0
    deaths=$((deaths + 1))
    if ! kill -0 "$workers" 2>/dev/null; then
        say "coordinator ended with code $code, and there are no workers any more: giving up"
        code=1
        break
    fi
    case $code in
    1 | 2 | 126 | 127)
        if [ -z "$served" ] && [ "$deaths" -ge 3 ] && [ -e "$STARTED" ]; then
            say "coordinator ended with code $code, $deaths times, and has never served: giving up"
            [ "$code" -eq 2 ] || code=1
            break
        fi
        ;;
    esac
    say "coordinator ended with code $code: starting it again"
    sleep $((deaths < 6 ? 1 << (deaths - 1) : 30)) &
    wait $!
    [ -z "$stopping" ] || break
done
[ "$code" -ne 4 ] || say "the run goes on in the job that succeeds this one"
[ "$code" -eq 4 ] || say "coordinator ended with code $code: the run is over"

# The workers end on their own, as the coordinator told them; what does not is signalled, then killed (srun kills its
# tasks on a SIGTERM of its own).
if ! ends_within "$PATIENCE" "$workers"; then
    scancel --signal=TERM "$SLURM_JOB_ID"
    ends_within $((PATIENCE / 2)) "$workers" || kill -TERM "$workers"
fi
wait "$workers"

case $code in 3 | 4) code=0 ;; esac
exit "$code"
