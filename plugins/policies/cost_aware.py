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

P and c are what this run has measured, see :mod:`liver_slurm.policy.balance`.
"""

from __future__ import annotations

import math

from liver_slurm.config.schema import JobConfig
from liver_slurm.plugins.policies import greedy
from liver_slurm.policy.api import Change, Decision, Snapshot, Stay, Wait
from liver_slurm.policy.balance import balance

LOOK_AGAIN = 15.0
"""Seconds after which a growth that did not pay is looked at again: standbys that have stayed tend to stay."""


def policy(snapshot: Snapshot, config: JobConfig) -> tuple[Decision, str]:
    """Return what ``greedy`` wants, if it pays."""
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
