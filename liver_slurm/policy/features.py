"""What is known when standby jobs are on offer, as numbers by name: all that a decision may be learned from. Pure.

Nothing here is known only after the decision, and nothing names a partition or a node: what is learned on one partition
is to be of use on another. Names and meanings are a contract with tables and models; a change of either raises
:data:`VERSION`. Those that begin with ``log_`` are log(1 + seconds), as durations go over many orders of magnitude.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import median

from liver_slurm.config.schema import JobConfig
from liver_slurm.policy.api import Change, Snapshot, offered_jobs
from liver_slurm.policy.balance import Balance, Costs, ages, balance, costs
from liver_slurm.policy.cost_model import estimate

VERSION = 1
HOUR, DAY = 3600.0, 86400.0

MEANINGS: dict[str, str] = {
    "speedup": "how much faster a step gets, by the cost model",
    "log_step_s": "duration of a step now",
    "log_left_s": "time that is left to train",
    "workers": "workers that train now",
    "offered_workers": "workers on offer",
    "offered_jobs": "standby jobs on offer",
    "log_youngest_s": "time that the youngest of them has been there",
    "log_oldest_s": "time that the oldest of them has been there",
    "log_stay_s": "time that they are expected to stay, by the lives seen so far",
    "saved_s": "time that taking them is expected to save, as cost-aware reckons",
    "cost_s": "time that training is expected to stand still for it",
    "taken_1h": "standby jobs that the cluster took back in the last hour",
    "offers_1h": "standby jobs that came in the last hour",
    "log_life_s": "median life of those that were taken back",
    "log_prepare_s": "time to prepare a growth",
    "log_grow_s": "time that training stands still for a growth",
    "log_shrink_s": "time that training stands still for a shrink",
    "assumed": "no growth was measured yet",
    "log_grace_s": "notice that the job file counts on",
    "serve_ratio": "time to prepare, over that notice",
    "log_unsaved_s": "training since the last checkpoint",
    "log_limit_s": "time until the guaranteed job's limit",
    "log_since_resize_s": "time since the last change",
    "hour_sin": "time of day (UTC), first half of its circle",
    "hour_cos": "time of day (UTC), second half",
    "weekend": "Saturday or Sunday (UTC)",
    "room": "further workers that would start at once",
}
"""Each feature, and what it says, for people."""


def features(snapshot: Snapshot, change: Change, config: JobConfig) -> dict[str, float | None]:
    """Look at an offer.

    Args:
        snapshot: what the policy sees.
        change: what would be taken.
        config: the job.

    Returns:
        a finite number for each name of :data:`MEANINGS`; None: it is not known.
    """
    known, now = costs(snapshot), snapshot.now
    found: dict[str, float | None] = {
        "speedup": math.log(estimate(snapshot.live.layout, config) / estimate(change.layout, config)),
        "workers": float(snapshot.live.layout.size),
        "offered_workers": float(len(set(change.members) & set(snapshot.ready) - snapshot.guaranteed)),
        "offered_jobs": float(len(offered_jobs(snapshot, change))),
        "taken_1h": float(sum(one.taken and (one.ended or 0.0) > now - HOUR for one in snapshot.lives)),
        "offers_1h": float(sum(one.began > now - HOUR for one in snapshot.lives)),
        "room": None if snapshot.room is None else float(snapshot.room),
        "assumed": float(known.assumed),
        "hour_sin": math.sin(2 * math.pi * (now % DAY) / DAY),
        "hour_cos": math.cos(2 * math.pi * (now % DAY) / DAY),
        "weekend": float((now // DAY + 3) % 7 >= 5),  # the epoch began on a Thursday
    }
    found |= _speed(snapshot, change, config) | _costs(known, config) | _times(snapshot, change)
    return {name: found[name] if _is_finite(found[name]) else None for name in MEANINGS}


def _speed(snapshot: Snapshot, change: Change, config: JobConfig) -> dict[str, float | None]:
    """Return what depends on the duration of a step."""
    step_s = snapshot.step_seconds
    told = balance(snapshot, change, config) if step_s > 0.0 else None

    def of(part: Callable[[Balance], float]) -> float | None:
        return part(told) if told is not None else None

    return {
        "log_step_s": _log(step_s or None),
        "log_left_s": _log(snapshot.steps_left * step_s if step_s else None),
        "log_unsaved_s": _log(snapshot.unsaved_steps * step_s if step_s else None),
        "log_stay_s": _log(of(lambda one: one.stay)),
        "saved_s": of(lambda one: one.saved),
        "cost_s": of(lambda one: one.cost),
    }


def _costs(known: Costs, config: JobConfig) -> dict[str, float | None]:
    grace = config.standby.grace
    return {
        "log_prepare_s": _log(known.prepare),
        "log_grow_s": _log(known.grow),
        "log_shrink_s": _log(known.shrink),
        "log_grace_s": _log(grace),
        "serve_ratio": known.prepare / grace if grace else None,
    }


def _times(snapshot: Snapshot, change: Change) -> dict[str, float | None]:
    now, there = snapshot.now, ages(snapshot, change)
    lives = [one.seconds(now) for one in snapshot.lives if one.taken]
    return {
        "log_youngest_s": _log(min(there, default=None)),
        "log_oldest_s": _log(max(there, default=None)),
        "log_life_s": _log(median(lives) if lives else None),
        "log_limit_s": _log(max(0.0, snapshot.limit - now) if snapshot.limit is not None else None),
        "log_since_resize_s": _log(max(0.0, now - snapshot.live_since) if snapshot.live_since else None),
    }


def _log(seconds: float | None) -> float | None:
    return None if seconds is None or not math.isfinite(seconds) else math.log1p(seconds)


def _is_finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
