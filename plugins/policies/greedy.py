"""Take whatever makes a step faster, as soon as it is there."""

from __future__ import annotations

from liver_slurm.config.schema import JobConfig
from liver_slurm.policy.api import Change, Decision, Snapshot, Stay, Wait, allowed, pick
from liver_slurm.policy.cost_model import TIE, choose, estimate


def policy(snapshot: Snapshot, config: JobConfig) -> tuple[Decision, str]:
    """Return the layout with the shortest estimated step, once new standbys have been waited for together."""
    live, workers = snapshot.live, len(snapshot.pool)
    layouts = allowed(snapshot.pinned, config, workers)
    if not layouts:
        return Stay(), f"no allowed layout for {workers} workers"
    layout, why = choose(layouts, config, live, lambda one: pick(snapshot, one.size))
    if layout == live.layout:
        return Stay(), why
    if layout.size == live.layout.size and live.layout in layouts:
        # An estimate is no reason to leave a layout that somebody chose, or that trains already.
        return Stay(), f"{live.layout} has as many workers as {layout}"
    if live.layout in layouts and estimate(live.layout, config) <= TIE * estimate(layout, config):
        return Stay(), f"{live.layout} is as fast as {layout}"
    settled = snapshot.last_arrival + config.elastic.settle
    if snapshot.now < settled:
        return Wait(settled), f"{workers} workers; more may be arriving"
    return Change(layout, pick(snapshot, layout.size), "capacity"), f"{workers} workers; {why}"
