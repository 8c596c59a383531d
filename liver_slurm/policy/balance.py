"""What a growth is expected to save while its workers stay, and what it costs: both sides of ``cost-aware``'s rule.

P and c are means of the last :data:`RECENT` growths and shrinks of this run; a growth that was never seen is assumed to
take :data:`PREPARE` and :data:`EXPOSED`, a shrink that was never seen as long as a growth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from liver_slurm.config.schema import JobConfig
from liver_slurm.policy.api import Change, Snapshot
from liver_slurm.policy.cost_model import estimate
from liver_slurm.policy.survival import hazards, until_first_leaves

RECENT = 8
"""Reconfigurations of each kind that are remembered."""
PREPARE, EXPOSED = 30.0, 10.0
"""Seconds of preparation and of standing still that a first growth is assumed to cost."""


@dataclass(frozen=True)
class Costs:
    """Means of the last reconfigurations, in seconds."""

    prepare: float
    grow: float
    shrink: float
    assumed: bool
    """No growth was seen yet."""


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


def costs(snapshot: Snapshot) -> Costs:
    """Return what growing and shrinking have taken, or are assumed to."""
    grown = [one for one in snapshot.measured if one.added > 0][-RECENT:]
    shrunk = [one for one in snapshot.measured if one.added < 0][-RECENT:]
    grow = _mean([one.exposed_s for one in grown], EXPOSED)
    return Costs(
        prepare=_mean([one.prepare_s for one in grown], PREPARE),
        grow=grow,
        shrink=_mean([one.exposed_s for one in shrunk], grow),
        assumed=not grown,
    )


def balance(snapshot: Snapshot, change: Change, config: JobConfig) -> Balance:
    """Return both sides of the inequality for a change; the duration of a step must be known."""
    known, now = costs(snapshot), snapshot.step_seconds
    ratio = estimate(change.layout, config) / estimate(snapshot.live.layout, config)
    stay = until_first_leaves(
        hazards(snapshot.lives, config.standby.expected_life, snapshot.now), ages(snapshot, change)
    )
    left = snapshot.steps_left - known.prepare / now
    rest = known.prepare + max(0.0, left) * now * ratio
    saved = max(0.0, min(stay, rest) - known.prepare) * (1.0 - ratio)
    return Balance(saved, known.grow + (known.shrink if stay < rest else 0.0), stay)


def ages(snapshot: Snapshot, change: Change) -> list[float]:
    """Return the seconds that each added standby job has been there; workers of the guaranteed job are not taken."""
    arrived: dict[str, float] = {}
    for worker in change.members:
        if worker in snapshot.ready and worker not in snapshot.guaranteed:
            job = snapshot.job_of.get(worker, worker)
            came = snapshot.arrived.get(worker, snapshot.last_arrival)
            arrived[job] = min(came, arrived.get(job, came))
    return [max(0.0, snapshot.now - came) for came in arrived.values()]


def _mean(values: Sequence[float], default: float) -> float:
    return fmean(values) if values else default
