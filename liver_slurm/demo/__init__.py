"""The demo: an elastic training job on a real Slurm cluster on this machine."""
