"""Policies to compare with that know what no run knows, and simple ones that nobody would want to ship.

With v the ratio of speeds, P the time to prepare, and T the time that nodes stay, taking them gains (v - 1)(T - P)
seconds of training at the speed of before, and costs what the change and the end of their time cost.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from liver_slurm.config.schema import JobConfig
from liver_slurm.plugins.policies import cost_aware, greedy
from liver_slurm.policy.api import Change, Decision, Policy, Snapshot, Stay, Wait, offered_jobs
from liver_slurm.policy.balance import balance
from liver_slurm.policy.cost_model import estimate
from liver_slurm.simulation.elastic_run import ElasticRun
from liver_slurm.simulation.regimes import PREPARE, Drawn, Regime


def never(snapshot: Snapshot, config: JobConfig) -> tuple[Decision, str]:
    """Leave everything."""
    return Stay(), "never grows"


def priced(loss_s: float) -> Policy:
    """Return ``cost-aware`` with a price: each node that is taken costs a run that loses it so many seconds more."""

    def policy(snapshot: Snapshot, config: JobConfig) -> tuple[Decision, str]:
        decision, reason = cost_aware.policy(snapshot, config)
        if isinstance(decision, Change) and offered_jobs(snapshot, decision):
            found = balance(snapshot, decision, config)
            if found.saved <= found.cost + loss_s:
                return Wait(snapshot.now + cost_aware.LOOK_AGAIN), f"{reason}; not with its price"
        return decision, reason

    return policy


def informed(drawn: Drawn) -> Policy:
    """Return the policy that knows the chance a second at which nodes are taken, and takes what gains on average."""

    def worth(snapshot: Snapshot, change: Change, faster: float) -> float:
        hazard = drawn.hazard(snapshot.now)
        return faster * math.exp(-hazard * PREPARE) / hazard

    return _taking(worth, drawn.regime)


def clairvoyant(run: ElasticRun, regime: Regime) -> Policy:
    """Return the policy that knows when each node of a run is going to be taken."""

    def worth(snapshot: Snapshot, change: Change, faster: float) -> float:
        stays = min(run.goes_at(one) for one in offered_jobs(snapshot, change)) - snapshot.now
        return faster * max(0.0, stays - PREPARE)

    return _taking(worth, regime)


def _taking(worth: Callable[[Snapshot, Change, float], float], regime: Regime) -> Policy:
    """Return the policy that does what ``greedy`` does where that is worth more than it costs."""

    def policy(snapshot: Snapshot, config: JobConfig) -> tuple[Decision, str]:
        decision, reason = greedy.policy(snapshot, config)
        if isinstance(decision, Change) and offered_jobs(snapshot, decision):
            faster = estimate(snapshot.live.layout, config) / estimate(decision.layout, config) - 1.0
            if worth(snapshot, decision, faster) <= regime.change_s + regime.loss_s:
                return Wait(snapshot.now + cost_aware.LOOK_AGAIN), f"{reason}; is not worth it"
        return decision, reason

    return policy
