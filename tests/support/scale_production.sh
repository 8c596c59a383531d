#!/bin/sh
# A production job: notes when it started and ended, and takes so many seconds.
date +%s.%N > "$1/$SLURM_JOB_ID.start"
sleep "$2"
date +%s.%N > "$1/$SLURM_JOB_ID.end"
