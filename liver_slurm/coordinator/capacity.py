"""How many standby jobs to start. Pure. An extra standby is harmless, a blind scheduler query is not."""

from __future__ import annotations

from liver_slurm.config.layouts import feasible_layouts
from liver_slurm.config.schema import JobConfig
from liver_slurm.coordinator.supply import Supply


def to_launch(supply: Supply, config: JobConfig, live_workers: int, asked: int = 0) -> tuple[int, str]:
    """Standby jobs to start now, and why that many.

    ``live_workers`` are the guaranteed ones; ``asked``: workers that the largest explicit request needs.
    """
    standby = config.standby
    if standby.max_jobs == 0:
        return 0, "standby.max_jobs is 0"
    if supply.blind is not None:
        return 0, f"the scheduler could not be asked: {supply.blind}"
    per_job = standby.nodes_per_job * standby.tasks_per_node
    useful = max(asked, _largest_world(config, live_workers + standby.max_jobs * per_job)) - live_workers
    wanted = min(standby.max_jobs, -(-max(0, useful) // per_job))
    # A job that is ending does nothing for us any more, but Slurm still counts it; so does max_jobs.
    missing = min(wanted - sum(job.state != "ending" for job in supply.jobs), standby.max_jobs - len(supply.jobs))
    count = max(0, min(missing, supply.idle_units))
    return count, f"{wanted} standby jobs are useful, {len(supply.jobs)} exist, {supply.idle_units} could start at once"


def _largest_world(config: JobConfig, workers: int) -> int:
    """Workers of the largest world that the run may have with ``workers`` workers."""
    layouts = feasible_layouts(config, workers)
    return layouts[0].size if layouts else 0
