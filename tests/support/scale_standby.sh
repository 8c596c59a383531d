#!/bin/sh
# A standby job: tells the process that has its workers that it runs and that it was sent a signal, and waits for the end.
tell() {
    echo "$1 $SLURM_JOB_ID $$ $SLURM_NNODES $SLURM_JOB_NODELIST" > "$fifo"
}
fifo=$1
trap 'tell notice' USR2
trap 'kill $!; exit 0' TERM
tell begun
sleep 100000 &
# A signal ends the wait, and not what is waited for.
while kill -0 $! 2> /dev/null; do
    wait $!
done
