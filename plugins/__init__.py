"""What sites and users swap: policies, submitit's environment and executor, Slurm's job_submit filter.

``liver_slurm/plugins`` is a link to this folder: the plugins lie where people look for them, and are in the wheel. Each
is found by an entry point of pyproject.toml, and so are those of other packages.
"""
