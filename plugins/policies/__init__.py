"""Policies: whether the world is worth resizing for the workers that there are.

Each module is a policy of its name (``cost_aware`` is ``standby.policy = "cost-aware"``) and holds a function
``policy(snapshot, config) -> (decision, reason)``, see :mod:`liver_slurm.policy.engine`. Another package's policy
is such a function behind an entry point of the group ``liver_slurm.policies``; one with a name of ours takes its place.
"""
