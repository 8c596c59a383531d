"""The adapter for Slurm: its commands, its records, its jobs."""
