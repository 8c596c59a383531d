#!/bin/sh
# An ordinary preemptible job: ends at once when Slurm wants its nodes back.
trap 'kill $!; exit 0' USR2 TERM
sleep 100000 &
wait $!
