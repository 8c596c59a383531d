"""What sites and users swap: policies, submitit's environment and executor, Slurm's job_submit filter.

``liver_slurm/plugins`` is a link to this folder: the plugins lie where people look for them, and are in the wheel.
Those of other packages are found by entry points; each folder says of which group.
"""
