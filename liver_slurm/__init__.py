"""Keeps LLM training running on Slurm while the nodes under it come and go."""
