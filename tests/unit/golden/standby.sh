#!/bin/bash

# Parameters
#SBATCH --account=lab
#SBATCH --comment=/runs/run
#SBATCH --cpus-per-task=3
#SBATCH --error=/runs/run/standby/%j_0_log.err
#SBATCH --export=ALL
#SBATCH --gres=gpu:4
#SBATCH --job-name=run-standby
#SBATCH --mem=16G
#SBATCH --no-requeue
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --open-mode=append
#SBATCH --output=/runs/run/standby/%j_0_log.out
#SBATCH --partition=a
#SBATCH --qos=low
#SBATCH --signal=USR2@30
#SBATCH --time=4:00:00

# setup
# liver_slurm.worker --role standby: a site's job_submit filter knows standbys by this line.
module load cuda
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-3}"

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /runs/run/standby/%j_%t_log.out --error /runs/run/standby/%j_%t_log.err --cpus-per-task=3 --mpi=none --no-kill --kill-on-bad-exit=0 --wait=0 /opt/liver/bin/python -u -m submitit.core._submit /runs/run/standby
