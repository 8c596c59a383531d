"""The adapter for runs without Slurm: standby jobs are plain processes of this machine."""
