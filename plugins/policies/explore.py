"""Take what ``greedy`` would, or leave it, by lot: what an advisor can learn from.

Logs of a policy that always takes, or never, have nothing to compare. This one leaves with a chance that the job file
states, whatever the offer, and says the chance with its decision. What it leaves it gives back, and the partition rests
for ``standby.commit``: a minute more or less would have no effect to be learned.

The lot is a hash of the run and of the jobs on offer, so a coordinator that starts again decides the same.
"""

from __future__ import annotations

from dataclasses import replace
from hashlib import blake2b

from liver_slurm.config.schema import JobConfig
from liver_slurm.plugins.policies import greedy
from liver_slurm.policy.api import Change, Decision, Leave, Snapshot, Wait, offered_jobs

LOOK_AGAIN = 15.0
"""Seconds until it is looked whether the duration of a step is known, without which nothing can be learned."""


def policy(snapshot: Snapshot, config: JobConfig) -> tuple[Decision, str]:
    """Return what ``greedy`` wants, unless the lot says to leave it."""
    decision, reason = greedy.policy(snapshot, config)
    if not isinstance(decision, Change) or not (jobs := offered_jobs(snapshot, decision)):
        return decision, reason
    if snapshot.step_seconds <= 0.0:
        return Wait(snapshot.now + LOOK_AGAIN), f"{reason}; waits for the duration of a step"
    chance, rest = config.standby.explore, config.standby.commit
    if lot(snapshot.run_id, jobs) < chance:
        count = f"{len(jobs)} standby job{'s' if len(jobs) > 1 else ''}"
        told = f"{reason}; explores: leaves {count} for {rest:g} s, with a chance of {chance:g}"
        return Leave(jobs, snapshot.now + rest, chance), told
    return replace(decision, propensity=1.0 - chance), f"{reason}; explores: takes, with a chance of {1.0 - chance:g}"


def lot(run_id: str, jobs: tuple[str, ...]) -> float:
    """Draw a number from 0 to 1, the same for the same jobs of the same run."""
    digest = blake2b("\0".join((run_id, *jobs)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2.0**64
