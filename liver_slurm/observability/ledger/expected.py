"""What a run may expect: Meta's closed form for ETTR. Pure.

Meta (arXiv 2410.21680): with failures at a rate ``r`` a second, ``u0`` seconds to train again after one, a checkpoint
each ``dt`` seconds that stops training for ``w``::

    E[ETTR] = (1 - r · (u0 + dt / 2)) / (1 + w / dt)

``dt / 2`` is what a failure loses in the mean. A change that is announced loses nothing, so the term is left out for
changes of this run; both forms hold for training that has begun, without queue and start.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from liver_slurm.observability.ledger.account import Account
from liver_slurm.observability.ledger.causes import Cause
from liver_slurm.observability.ledger.changes import LOSS, Change
from liver_slurm.observability.ledger.gaps import disrupted_gaps
from liver_slurm.rundir.events import (
    BegunAnew,
    CheckpointWritten,
    Interrupted,
    RecoveryPlanned,
    WorkerLost,
)

DAY = 86400.0
_LOST = (BegunAnew, Interrupted, RecoveryPlanned, WorkerLost)


@dataclass(frozen=True)
class Expected:
    """Meta's closed form with this run's own figures."""

    changes: int
    """Committed reconfigurations that somebody announced or asked for."""
    losses: int
    """Times that a world was lost and training went on after it."""
    per_day: float
    """Both together, a day of training."""
    between_s: float | None
    """Seconds of training from one to the next; None: there was none."""
    u0_s: float
    """Mean of what training lost by one."""
    save_s: float
    """Mean of what training stood still for a checkpoint."""
    every_s: float | None
    """Mean seconds from one checkpoint to the next; None: fewer than two were written."""
    ettr: float
    """Expected, of training that has begun."""
    measured: float
    """Of the same time: productive seconds over those since the first step."""


def expect(account: Account, changes: tuple[Change, ...]) -> Expected:
    """Return what the closed form says for the rate of events of this run."""
    facts, steps = account.facts, account.facts.steps
    made = [change for change in changes if change.committed and change.cause != LOSS]
    losses = sum(
        0 <= gap < len(steps) - 1 and any(isinstance(event, _LOST) for event in events)
        for gap, events in disrupted_gaps(facts).items()
    )
    trained = account.timeline.seconds(float(steps.start[0]), facts.until) if len(steps) else {}
    seconds = sum(trained.values())
    productive = trained.get(Cause.STEP, 0.0)
    lost = sum(change.exposed_s for change in made)
    lost += trained.get(Cause.WASTED, 0.0) + trained.get(Cause.RECOVERY, 0.0) + trained.get(Cause.REQUEUE, 0.0)
    count = len(made) + losses
    u0 = lost / count if count else 0.0
    saved = [event for event in facts.events if isinstance(event, CheckpointWritten)]
    save = statistics.fmean(event.stall_s for event in saved) if saved else 0.0
    every = (saved[-1].time - saved[0].time) / (len(saved) - 1) if len(saved) > 1 else None
    rate = count / seconds if seconds else 0.0
    ettr = max(0.0, 1.0 - rate * u0) / (1.0 + (save / every if every else 0.0))
    return Expected(
        changes=len(made),
        losses=losses,
        per_day=rate * DAY,
        between_s=1.0 / rate if rate else None,
        u0_s=u0,
        save_s=save,
        every_s=every,
        ettr=ettr,
        measured=productive / seconds if seconds else 0.0,
    )
