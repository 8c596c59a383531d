"""The Python API, and whole runs without Slurm; what the command line and the benchmarks are made of."""
