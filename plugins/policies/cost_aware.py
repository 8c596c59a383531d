"""Resize if what it saves while the new workers may be expected to stay exceeds what it costs.

Let s be the duration of a step now, s' the one in the new layout (s times the ratio of the cost model's estimates), R
the expected time until the first of the added standby jobs is taken, P the time to prepare, and c the time that
training stands still for growing and for shrinking again. Until R the run trains R/s steps if it stays, and
P/s + (R - P - c)/s' if it resizes. The second is more exactly if

    (R - P) · (1 - s'/s)  >  c,          that is,  R  >  P + c / (1 - s'/s)

which is the break-even rule of rent-or-buy decisions (Karlin, Manasse, Rudolph and Sleator, "Competitive snoopy
caching", 1988), with the expected remaining life of :mod:`liver_slurm.policy.survival` in place of the worst case.
Time after the run's last step saves nothing: R is at most P + the time to train what is left in the new layout, and a
run that ends before its workers go need not shrink again.

P and c are means of the last :data:`RECENT` growths and shrinks of this run; a growth that was never seen is assumed to
take :data:`PREPARE` and :data:`EXPOSED`, a shrink that was never seen as long as a growth.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from liver_slurm.config.schema import JobConfig
from liver_slurm.plugins.policies import greedy
from liver_slurm.policy.api import Change, Decision, Snapshot, Stay, Wait
from liver_slurm.policy.cost_model import estimate
from liver_slurm.policy.survival import hazards, until_first_leaves

RECENT = 8
"""Reconfigurations of each kind that are remembered."""
PREPARE, EXPOSED = 30.0, 10.0
"""Seconds of preparation and of standing still that a first growth is assumed to cost."""
LOOK_AGAIN = 15.0
"""Seconds after which a growth that did not pay is looked at again: standbys that have stayed tend to stay."""


@dataclass(frozen=True)
class Balance:
    """Both sides of the inequality, in seconds."""

    saved: float
    cost: float
    stay: float
    """R, the time that the new workers are expected to stay."""

    @property
    def pays(self) -> bool:
        """The resize saves more than it costs."""
        return self.saved > self.cost


def policy(snapshot: Snapshot, config: JobConfig) -> tuple[Decision, str]:
    """What ``greedy`` wants, if it pays."""
    decision, reason = greedy.policy(snapshot, config)
    if not isinstance(decision, Change):
        return decision, reason
    if snapshot.step_seconds <= 0.0:
        return Wait(snapshot.now + LOOK_AGAIN), f"{reason}; waits for the duration of a step"
    found = balance(snapshot, decision, config)
    stay = "the run's end" if math.isinf(found.stay) else f"{found.stay:.0f} s"
    told = f"{reason}; saves {found.saved:.1f} s until {stay} for {found.cost:.1f} s of standing still"
    if found.pays:
        return decision, told
    if math.isinf(found.stay):
        return Stay(), f"{told}: does not pay"
    return Wait(snapshot.now + LOOK_AGAIN), f"{told}: does not pay"


def balance(snapshot: Snapshot, change: Change, config: JobConfig) -> Balance:
    """Both sides of the inequality for a change."""
    grown = [one for one in snapshot.measured if one.added > 0][-RECENT:]
    shrunk = [one for one in snapshot.measured if one.added < 0][-RECENT:]
    prepare = _mean([one.prepare_s for one in grown], PREPARE)
    grow_cost = _mean([one.exposed_s for one in grown], EXPOSED)
    shrink_cost = _mean([one.exposed_s for one in shrunk], grow_cost)

    now = snapshot.step_seconds
    ratio = estimate(change.layout, config) / estimate(snapshot.live.layout, config)
    stay = until_first_leaves(
        hazards(snapshot.lives, config.standby.expected_life, snapshot.now), _ages(snapshot, change)
    )
    left = snapshot.steps_left - prepare / now
    rest = prepare + max(0.0, left) * now * ratio
    saved = max(0.0, min(stay, rest) - prepare) * (1.0 - ratio)
    return Balance(saved, grow_cost + (shrink_cost if stay < rest else 0.0), stay)


def _ages(snapshot: Snapshot, change: Change) -> list[float]:
    """Seconds that each added standby job has been there; workers of the guaranteed job are not taken."""
    arrived: dict[str, float] = {}
    for worker in change.members:
        if worker in snapshot.ready and worker not in snapshot.guaranteed:
            job = snapshot.unit_of.get(worker, worker)
            came = snapshot.arrived.get(worker, snapshot.last_arrival)
            arrived[job] = min(came, arrived.get(job, came))
    return [max(0.0, snapshot.now - came) for came in arrived.values()]


def _mean(values: Sequence[float], default: float) -> float:
    return fmean(values) if values else default
