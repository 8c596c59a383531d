"""Greedy about workers that have stayed a while: a node that is idle for a minute is not worth two resizes."""

from __future__ import annotations

from dataclasses import replace

from liver_slurm.config.schema import JobConfig
from liver_slurm.plugins.policies import greedy
from liver_slurm.policy.api import Change, Decision, Snapshot, Stay, Wait


def policy(snapshot: Snapshot, config: JobConfig) -> tuple[Decision, str]:
    """Grow only by workers that have been ready for ``standby.hold``, and not sooner than that after the last resize.

    So a run of T seconds grows at most 1 + T / hold times, however nodes come and go.
    """
    hold = config.standby.hold
    ripe_at = {
        worker: 0.0 if worker in snapshot.guaranteed else snapshot.arrived.get(worker, snapshot.last_arrival) + hold
        for worker in snapshot.ready
    }
    ripe = tuple(worker for worker in snapshot.ready if ripe_at[worker] <= snapshot.now)
    newest = max((snapshot.arrived.get(worker, 0.0) for worker in ripe), default=0.0)
    decision, reason = greedy.policy(replace(snapshot, ready=ripe, last_arrival=newest), config)
    if isinstance(decision, Change):
        rested = snapshot.live_since + hold if snapshot.live_since else 0.0
        if snapshot.now < rested:
            return Wait(rested), f"{reason}; the last resize was less than {hold:g} s ago"
        return decision, reason
    unripe = [at for at in ripe_at.values() if at > snapshot.now]
    if unripe and isinstance(decision, Stay) and _would_change(snapshot, config):
        return Wait(min(unripe)), f"{reason}; {len(unripe)} workers have been there for less than {hold:g} s"
    return decision, reason


def _would_change(snapshot: Snapshot, config: JobConfig) -> bool:
    return not isinstance(greedy.policy(snapshot, config)[0], Stay)
