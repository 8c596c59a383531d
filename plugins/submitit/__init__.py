"""submitit on liver-slurm: ``submitit.AutoExecutor(folder, cluster="liver")``, for functions of users.

What differs from submitit's ``slurm``: the function keeps its signals (submitit ignores SIGTERM and answers SIGUSR2 by
checkpoint and requeue), a notice ends the job, and states come from one squeue query for all jobs instead of sacct.
"""
